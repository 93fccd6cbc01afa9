//! The command as people use it, on real base images. `scripts/test` runs this as an ordinary user and as root;
//! tests whose names begin with `root_` need root to set their scene and run with it only.

mod lab;

mod articles;
mod checking;
mod contexts;
mod copy_covers;
mod copy_links;
mod copying;
mod corners;
mod destinations;
mod equal_layers;
mod faults;
mod folded;
mod foreground;
mod foreign;
mod forge;
mod images;
mod isolated;
mod language;
mod leaning;
mod lifecycle;
mod mistakes;
mod moving;
mod multistage;
mod names;
mod promises;
mod removing;
mod result;
mod rungs;
mod running;
mod secrets;
mod sources;
mod stacks;
mod storm;
mod surroundings;
mod why;
