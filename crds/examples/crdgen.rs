//! Prints the CRDs as YAML, or writes each to its file in the folder given as argument.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    for (file, crd) in tidegate_crds::manifest::all() {
        let yaml = tidegate_crds::manifest::to_yaml(&crd)?;
        match &folder {
            Some(folder) => std::fs::write(folder.join(file), yaml)?,
            None => println!("---\n{yaml}"),
        }
    }
    Ok(())
}
