//! All integration tests, in one binary. Each module covers one boundary of the service.
//!
//! They use real processes, real HTTP and real sockets on ports that the system chooses. A test waits for a fact, with a
//! bound, and never for time to pass.
#![forbid(unsafe_code)]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

mod abuse;
mod access;
mod actors;
mod admission;
mod argv;
mod backend_faults;
mod bytes;
mod cancel;
mod check;
mod check_cli;
mod claude;
mod claude_cli;
mod client_faults;
mod client_packages;
mod clients;
mod connections;
mod control;
mod drain;
mod faults;
mod flood;
mod guards;
mod help;
mod holds;
mod hostile;
mod input;
mod layers;
mod legacy_backend;
mod life;
mod liveness;
mod local_users;
mod logs;
mod logs_cli;
mod names;
mod observers;
mod output;
mod profiles;
mod proxy;
mod race;
mod reconnect;
mod reference;
mod replay;
mod retention;
mod run;
mod run_flags;
mod settings;
mod shell;
mod slow_client;
mod storage;
mod terminal;
mod tidy;
mod tls;
mod token_files;
mod tokens;
mod usage;
