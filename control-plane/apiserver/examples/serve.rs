//! Runs the API server alone on an embedded store: `serve DATA_DIR [ADDRESS:PORT]`.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use xebec_apiserver::{Config, Server};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut arguments = std::env::args().skip(1);
    let data_dir = arguments.next().ok_or("usage: serve DATA_DIR [ADDRESS:PORT]")?;
    let bind = arguments.next().unwrap_or_else(|| "127.0.0.1:0".into()).parse()?;
    std::fs::create_dir_all(&data_dir)?;
    let store = Arc::new(xebec_store::embedded::open(format!("{data_dir}/store.redb"), xebec_store::embedded::Options::default())?);
    let server = Server::start(Config::new(&data_dir, bind), store).await?;
    println!("listening on {}, kubeconfig {data_dir}/admin.kubeconfig", server.address());
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    server.run(cancel).await?;
    Ok(())
}
