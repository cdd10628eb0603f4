//! The platform as a whole: Nginx, nodes, queue, worker and cache as real processes, one chain.

mod chain;
mod losses;
mod support;
