//! The command line on real base images. `scripts/test` runs these tests as an ordinary user and as
//! root. Tests whose names begin with `root_` need root for their setup and run as root only.

use rbuild_testkit as lab;

mod articles;
mod checking;
mod contexts;
mod copy_covers;
mod copy_links;
mod copying;
mod corners;
mod debug_log;
mod destinations;
mod equal_layers;
mod faults;
mod folded;
mod foreground;
mod foreign;
mod forge;
mod hostile;
mod images;
mod isolated;
mod language;
mod leaning;
mod lifecycle;
mod loading;
mod locks;
mod many_layers;
mod mistakes;
mod moving;
mod multistage;
mod names;
mod owners;
mod promises;
mod registries;
mod removing;
mod result;
mod rungs;
mod running;
mod secrets;
mod sources;
mod stacks;
mod storm;
mod streams;
mod surroundings;
mod taken_back;
mod ways_out;
mod why;
