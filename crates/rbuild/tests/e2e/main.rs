//! The command line on real base images. `scripts/test` runs these tests as an ordinary user and as
//! root. Tests whose names begin with `root_` need root for their setup and run as root only.

#![allow(clippy::print_stdout, reason = "the seed of generated cases is shown if a test fails")]

use rbuild_testkit as lab;

mod caches;
mod changed_copies;
mod changing_contexts;
mod checking;
mod claims;
mod container_files;
mod container_health;
mod container_verbs;
mod containers;
mod contexts;
mod copy_covers;
mod copy_edge_cases;
mod copy_links;
mod copying;
mod debug_log;
mod destinations;
mod downloads;
mod equal_layers;
mod errors;
mod explain;
mod faults;
mod fetcher_deaths;
mod fleet_caches;
mod foreign;
mod forge;
mod hostile;
#[path = "../../../rbuild-registry/tests/client/http_request.rs"]
mod http_request;
mod image_volumes;
mod images;
mod implicit_dirs;
mod insecure;
mod isolated;
mod isolation_modes;
mod language;
mod lazy_trees;
mod lifecycle;
mod loading;
mod locks;
mod many_layers;
mod mount_cleanup;
mod multistage;
mod names;
mod object_caches;
mod open_uploads;
mod output_formats;
mod outputs;
mod owners;
mod platform_pulls;
mod platforms;
mod portable_caches;
mod portable_keys;
mod processes;
mod pulls;
mod pushes;
mod random_kills;
mod registries;
mod registry_settings;
mod remote_caches;
mod remote_inputs;
mod removing;
mod run_command;
mod run_environment;
mod run_pulls;
mod running;
mod secrets;
mod security;
mod several_platforms;
mod sources;
mod stacks;
mod streams;
mod tutorials;
