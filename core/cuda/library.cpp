#include "core/cuda/library.h"

#include <dlfcn.h>
#include <glob.h>

#include <cstdlib>
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

void* open_first(const std::string& pattern) {
  glob_t found{};
  void* library = nullptr;
  if (glob(pattern.c_str(), 0, nullptr, &found) == 0)
    for (size_t i = 0; i < found.gl_pathc && !library; ++i) library = dlopen(found.gl_pathv[i], RTLD_NOW | RTLD_LOCAL);
  globfree(&found);
  return library;
}

}  // namespace

void* open_library(const std::string& name) {
  std::vector<std::string> paths = {name};
  if (const char* home = std::getenv("CUDA_HOME"))
    for (const char* folder : {"/lib64/", "/lib/"}) paths.push_back(concat(home, folder, name));
  for (const char* folder : {"/usr/local/cuda/lib64", "/usr/local/cuda/lib", "/usr/lib/x86_64-linux-gnu"})
    paths.push_back(concat(folder, '/', name));
  for (const std::string& path : paths)
    if (void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
  for (const std::string& prefix : python_prefixes())
    for (const char* packages : {"site-packages", "dist-packages"})
      if (void* library = open_first(concat(prefix, "/lib/python3*/", packages, "/nvidia/*/lib/", name)))
        return library;
  return nullptr;
}

}  // namespace mmfree::cuda
