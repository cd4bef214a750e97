#pragma once

namespace mmfree {

/// Prints what a training on this machine would compute with: `mmfree info` without a file.
void print_machine();

}  // namespace mmfree
