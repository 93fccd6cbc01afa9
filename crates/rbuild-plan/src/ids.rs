//! Identifiers of vertices, named contexts and volumes: positions in lists, each with its own type.

use std::ops::{Index, IndexMut};

/// Position of a vertex in `BuildGraph::vertices`, and of its item in lists with one item per
/// vertex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VertexId(usize);

/// Position of a named context in `Parameters::contexts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContextId(usize);

/// Position of a host directory in `Parameters::volumes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(usize);

macro_rules! position {
    ($($name:ident)+) => {$(
        impl $name {
            /// Returns the identifier of a position.
            pub fn new(position: usize) -> $name {
                $name(position)
            }

            /// Returns the position.
            pub fn position(self) -> usize {
                self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl<T> Index<$name> for Vec<T> {
            type Output = T;
            fn index(&self, id: $name) -> &T {
                &self[id.0]
            }
        }

        impl<T> IndexMut<$name> for Vec<T> {
            fn index_mut(&mut self, id: $name) -> &mut T {
                &mut self[id.0]
            }
        }

        impl<T> Index<$name> for [T] {
            type Output = T;
            fn index(&self, id: $name) -> &T {
                &self[id.0]
            }
        }

        impl<T> IndexMut<$name> for [T] {
            fn index_mut(&mut self, id: $name) -> &mut T {
                &mut self[id.0]
            }
        }
    )+};
}

position!(VertexId ContextId VolumeId);
