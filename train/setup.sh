# Sourced by train/quickstart.sh and tests/run.sh: makes sure the Debian packages are there and builds the program.
# As root, missing packages are installed; otherwise the script says which ones to install and stops.

mmfree_packages=(
  g++ cmake ninja-build ccache
  libhdf5-dev libdnnl-dev libsentencepiece-dev libyaml-cpp-dev libcli11-dev nlohmann-json3-dev
  libzstd-dev zlib1g-dev libxxhash-dev libgtest-dev python3
)

mmfree_install() {
  local missing=() p
  for p in "${mmfree_packages[@]}"; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
  done
  [ ${#missing[@]} -eq 0 ] && return
  if [ "$(id -u)" -ne 0 ]; then
    echo "These Debian packages are missing. Install them and run this again:" >&2
    echo "  sudo apt-get install ${missing[*]}" >&2
    exit 69
  fi
  echo "Installing ${missing[*]}"
  local log
  log=$(mktemp)
  if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "Installing the packages failed (full log: $log)" >&2
    exit 69
  fi
  rm -f "$log"
}

# A cache that was copied with the project would build into the folder it was made for.
mmfree_drop_foreign_cache() {
  [ -f build/CMakeCache.txt ] || return 0
  local source
  source=$(sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' build/CMakeCache.txt)
  [ "$source" -ef . ] && return
  echo "build/ was configured for ${source:-another folder}: configuring it for $PWD, with the default options"
  rm -rf build/CMakeCache.txt build/CMakeFiles
}

# mmfree_build TARGET...: configures build/ if needed and builds the targets.
mmfree_build() {
  mmfree_drop_foreign_cache
  cmake -S . -B build -G Ninja --log-level=ERROR >/dev/null
  cmake --build build --target "$@"
}
