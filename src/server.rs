//! What both roles need of a listener: who may connect, how a connection is looked after, how a request is refused, how
//! the service is told to stop and ends. It knows neither role.

pub mod auth;
pub mod connection;
pub mod drain;
pub mod refused;
pub mod shutdown;
