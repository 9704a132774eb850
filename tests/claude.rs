//! Claude's events through the whole service. Start with `script`, which stands in for the CLI.

mod ending;
mod events;
mod legacy_image;
mod options;
mod run;
mod script;
mod stream_route;
