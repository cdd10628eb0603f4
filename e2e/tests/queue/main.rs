//! Asynchronous writes and the change feed on real RabbitMQ brokers.

mod changes;
mod support;
mod writes;
