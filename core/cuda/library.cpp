#include "core/cuda/library.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <vector>

#include "core/error.h"

namespace mmfree::cuda {
namespace {

/// Folders in which a Python environment may keep lib/python3.x: those that the environment names, that of each program
/// folder in PATH, and the user's own.
std::vector<std::string> python_prefixes() {
  std::vector<std::string> prefixes;
  for (const char* name : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (const char* value = std::getenv(name); value && *value) prefixes.push_back(value);
  if (const char* path = std::getenv("PATH")) {
    std::istringstream folders(path);
    for (std::string folder; std::getline(folders, folder, ':');)
      if (folder.starts_with('/')) prefixes.push_back(concat(folder, "/.."));
  }
  for (const char* folder : {"/usr/local", "/usr"}) prefixes.push_back(folder);
  if (const char* home = std::getenv("HOME")) prefixes.push_back(concat(home, "/.local"));
  return prefixes;
}

/// The folders in `folder` whose names begin with `prefix`, sorted. None if it cannot be read.
std::vector<std::string> folders_in(const std::string& folder, const char* prefix) {
  std::vector<std::string> found;
  std::error_code error;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    if (it->path().filename().string().starts_with(prefix)) found.push_back(it->path().string());
  std::ranges::sort(found);
  return found;
}

void* open_path(const std::string& path) { return dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL); }

}  // namespace

void* open_library(const std::string& name) {
  std::vector<std::string> paths = {name};
  if (const char* home = std::getenv("CUDA_HOME"))
    for (const char* folder : {"/lib64/", "/lib/"}) paths.push_back(concat(home, folder, name));
  for (const char* folder : {"/usr/local/cuda/lib64/", "/usr/local/cuda/lib/", "/usr/lib/x86_64-linux-gnu/"})
    paths.push_back(concat(folder, name));
  for (const std::string& path : paths)
    if (void* library = open_path(path)) return library;
  for (const std::string& prefix : python_prefixes())
    for (const std::string& python : folders_in(concat(prefix, "/lib"), "python3"))
      for (const char* packages : {"/site-packages/nvidia", "/dist-packages/nvidia"})
        for (const std::string& package : folders_in(concat(python, packages), ""))
          if (void* library = open_path(concat(package, "/lib/", name))) return library;
  return nullptr;
}

}  // namespace mmfree::cuda
