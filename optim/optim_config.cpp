#include "optim/optim_config.h"

namespace mmfree {

const char* name_of(Schedule s) { return s == Schedule::cosine ? "cosine" : "constant"; }

}  // namespace mmfree
