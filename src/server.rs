//! What both roles need of a listener: who may connect, how a connection is looked after, how the service is told to
//! stop. It knows neither role.

pub mod auth;
pub mod connection;
pub mod shutdown;
