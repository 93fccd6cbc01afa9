//! Reads flags, environment variables, the configuration file and the build context.

pub mod cache;
pub mod config;
pub mod context;
pub mod file_names;
pub mod flags;
pub mod hidden_credentials;
pub mod machine_name;
pub mod mount_order;
pub mod mounts;
pub mod network;
pub mod object_caches;
pub mod output;
pub mod ports;
pub mod proxies;
pub mod registry;
pub mod request;
pub mod security;
pub mod server_settings;
pub mod settings;
pub mod stdin;
pub mod toml_value;
pub mod user_password;
pub mod value;
pub mod withheld_caches;

#[cfg(test)]
mod tests;
