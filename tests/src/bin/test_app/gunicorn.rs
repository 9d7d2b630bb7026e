//! The command line of httpbin's image: `gunicorn -b 0.0.0.0:14001 httpbin:app -k gevent`.

use std::env;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use tidegate_tests::app::App;

use crate::httpbin::{self, Health};

/// httpbin's answers, if the application is httpbin.
#[derive(Debug, Parser)]
#[command(name = "gunicorn")]
pub(crate) struct Gunicorn {
    /// Where to listen.
    #[arg(short, long)]
    bind: SocketAddr,
    /// The application; httpbin is the only one.
    #[arg(value_parser = ["httpbin:app"])]
    app: String,
    /// gunicorn's worker class; ignored.
    #[arg(short = 'k', long)]
    worker_class: Option<String>,
}

impl Gunicorn {
    /// The command line, if the program is called by this name.
    pub(crate) fn if_called_so() -> Option<Self> {
        let program = env::args_os().next()?;
        (Path::new(&program).file_name()? == "gunicorn").then(Self::parse)
    }

    pub(crate) fn run(self) -> ExitCode {
        let health = Health::default();
        let _app = App::start(self.bind, move |conversation| httpbin::serve(conversation, &health));
        crate::wait_for_end();
        ExitCode::SUCCESS
    }
}
