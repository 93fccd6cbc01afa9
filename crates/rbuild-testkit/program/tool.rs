//! The only program of the tiny image. It executes its arguments in order:
//!
//! ```text
//! write FILE TEXT    replaces the content of a file
//! copy FILE FILE     copies a file
//! show FILE          prints a file
//! env NAME           prints a variable of the environment
//! print TEXT         prints a text
//! exit CODE          ends
//! ```

use std::env::args;
use std::fs;

fn main() {
    let mut args = args().skip(1);
    while let Some(verb) = args.next() {
        let mut next = || args.next().unwrap_or_default();
        match verb.as_str() {
            "write" => fs::write(next(), next() + "\n").unwrap(),
            "copy" => drop(fs::copy(next(), next()).unwrap()),
            "show" => print!("{}", fs::read_to_string(next()).unwrap()),
            "env" => println!("{}", std::env::var(next()).unwrap_or_default()),
            "print" => println!("{}", next()),
            "exit" => std::process::exit(next().parse().unwrap()),
            other => panic!("no such verb: {other}"),
        }
    }
}
