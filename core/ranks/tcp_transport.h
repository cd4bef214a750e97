#pragma once
#include <memory>

#include "core/ranks/meeting.h"
#include "core/ranks/transport.h"

namespace mmfree {

/// Connects each rank of the meeting with each other, two connections a pair. `listener`: the one of own_port, at which
/// strangers may call too: whoever does not know the meeting's key is dropped.
/// @throws ConfigError if the ranks do not reach each other in rank_timeout(), what `check` throws
std::unique_ptr<Transport> connect_by_tcp(const Meeting&, tcp::Listener listener, const Check& check);

}  // namespace mmfree
