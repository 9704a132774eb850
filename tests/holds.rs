//! The backend states in its messages which consumer holds an execution, and at which instance it runs. A gateway never infers
//! that from a broken connection or from a response of another program.

mod cancel;
mod handover;
mod instance;
mod takeover;
