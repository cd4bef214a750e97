#include "optim/optim_config.h"

namespace mmfree {

const char* name_of(OptimizerKind k) {
  switch (k) {
    case OptimizerKind::adamw:
      return "adamw";
  }
  throw Error("optim: unknown optimizer");
}

const char* name_of(Schedule s) {
  switch (s) {
    case Schedule::constant:
      return "constant";
    case Schedule::linear:
      return "linear";
    case Schedule::cosine:
      return "cosine";
    case Schedule::wsd:
      return "wsd";
    case Schedule::two_phase:
      return "two_phase";
  }
  throw Error("optim: unknown schedule");
}

}  // namespace mmfree
