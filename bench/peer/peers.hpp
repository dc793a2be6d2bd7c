/// \file
/// The list of peers, by type. orderly is first.
#pragma once

#include "peer/best_fit.hpp"
#include "peer/boost_stack.hpp"
#include "peer/buddy_chunks.hpp"
#include "peer/buddy_mutex.hpp"
#include "peer/jemalloc.hpp"
#include "peer/malloc.hpp"
#include "peer/mimalloc.hpp"
#include "peer/orderly.hpp"
#include "peer/pmr_pool.hpp"
#include "peer/pytorch_like.hpp"
#include "peer/static_peer.hpp"
#include "peer/tbb.hpp"
#include "peer/tcmalloc.hpp"

namespace orderly::bench {

template <static_peer... Peers>
struct peer_list {};

using all_peers = peer_list<orderly_peer, best_fit_peer, pytorch_like_peer, buddy_mutex_peer, buddy_chunks_peer,
                            tcmalloc_peer, mimalloc_peer, jemalloc_peer, tbb_peer, pmr_pool_peer, boost_stack_peer,
                            malloc_peer>;

}  // namespace orderly::bench
