//! The mutating webhook that adds the sidecar to pods of the mesh.
