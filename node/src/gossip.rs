//! Gossip: chitchat over the authenticated peer connections.
