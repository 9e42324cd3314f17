//! A program's output over a plain QUIC stream, with nothing in between: no log, no durability, no reconnecting. The
//! floor of the transport. The server is this program as a process of its own, and so is the client.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ::quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream, ServerConfig, TransportConfig};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::runtime::Runtime;

use crate::lines::monotonic_ns;
use crate::peer::{Peer, Running, own, stamp_in};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs the server's or the client's part, if `args` ask for it.
pub(crate) fn run(args: &[String]) -> Option<ExitCode> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["quinn-server", certificate] => runtime().block_on(serve(certificate)),
        ["quinn-client", address, certificate, ref argv @ ..] => runtime().block_on(client(address, certificate, argv)),
        _ => return None,
    };
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quinn: {error}");
            ExitCode::FAILURE
        }
    })
}

fn runtime() -> Runtime {
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

async fn serve(certificate: &str) -> Result<(), Failure> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    std::fs::write(certificate, made.cert.der())?;
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let config = ServerConfig::with_single_cert(vec![made.cert.der().clone()], key)?;
    let endpoint = Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into())?;
    println!("{}", endpoint.local_addr()?);
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((send, recv)) = connection.accept_bi().await {
                tokio::spawn(answer(send, recv));
            }
        });
    }
    Ok(())
}

/// Runs the program that was asked for and sends what it writes.
async fn answer(mut send: SendStream, mut recv: RecvStream) -> Result<(), Failure> {
    let request = String::from_utf8(recv.read_to_end(64 * 1024).await?)?;
    let mut argv = request.split('\0');
    let mut child = tokio::process::Command::new(argv.next().unwrap_or_default())
        .args(argv)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdout = child.stdout.take().expect("it is piped");
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stdout.read(&mut buffer).await? {
            0 => break,
            length => send.write_all(&buffer[..length]).await?,
        }
    }
    send.finish()?;
    child.wait().await?;
    Ok(())
}

async fn client(address: &str, certificate: &str, argv: &[&str]) -> Result<(), Failure> {
    let connection = connect(address.parse()?, certificate).await?;
    let mut output = ask(&connection, argv).await?;
    let mut stdout = io::stdout();
    let mut buffer = vec![0; 256 * 1024];
    while let Some(length) = output.read(&mut buffer).await? {
        stdout.write_all(&buffer[..length])?;
        stdout.flush()?;
    }
    connection.close(0u32.into(), b"done");
    Ok(())
}

async fn connect(address: SocketAddr, certificate: &str) -> Result<Connection, Failure> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(std::fs::read(certificate)?))?;
    let mut endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
    let mut config = ClientConfig::with_root_certificates(Arc::new(roots))?;
    let mut transport = TransportConfig::default();
    // A session that is there stays there.
    transport.keep_alive_interval(Some(Duration::from_secs(2)));
    config.transport_config(Arc::new(transport));
    endpoint.set_default_client_config(config);
    Ok(endpoint.connect(address, "localhost")?.await?)
}

async fn ask(connection: &Connection, argv: &[&str]) -> Result<RecvStream, Failure> {
    let (mut send, recv) = connection.open_bi().await?;
    send.write_all(argv.join("\0").as_bytes()).await?;
    send.finish()?;
    Ok(recv)
}

pub(crate) struct Quinn {
    server: Child,
    address: String,
    certificate: String,
    _folder: TempDir,
    runtime: Runtime,
    /// A connection that is already there.
    warm: Connection,
}

impl Quinn {
    pub(crate) fn start() -> io::Result<Self> {
        let folder = TempDir::new()?;
        let certificate = folder.path().join("certificate").to_str().expect("it is UTF-8").to_owned();
        let argv = own(&["quinn-server", &certificate]);
        let mut server = Command::new(&argv[0]).args(&argv[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut address = String::new();
        BufReader::new(server.stdout.take().expect("it is piped")).read_line(&mut address)?;
        let address = address.trim().to_owned();
        let runtime = runtime();
        let to = address.parse().map_err(io::Error::other)?;
        let warm = runtime.block_on(connect(to, &certificate)).map_err(io::Error::other)?;
        Ok(Self { server, address, certificate, _folder: folder, runtime, warm })
    }

    async fn stamp(&self) -> Result<u64, Failure> {
        let argv = own(&["stamp"]);
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let output = ask(&self.warm, &argv).await?.read_to_end(1024).await?;
        stamp_in(&output).ok_or_else(|| "the program did not say when it began".into())
    }
}

impl Peer for Quinn {
    fn name(&self) -> &'static str {
        "quinn"
    }

    fn start(&self, argv: &[String]) -> io::Result<Running> {
        let client = own(&["quinn-client", &self.address, &self.certificate]);
        let mut command = Command::new(&client[0]);
        command.args(&client[1..]).args(argv);
        Running::start(command)
    }

    fn spawn_warm(&self) -> io::Result<Option<(u64, u64)>> {
        let begun = monotonic_ns();
        let stamp = self.runtime.block_on(self.stamp()).map_err(io::Error::other)?;
        Ok(Some((begun, stamp)))
    }
}

impl Drop for Quinn {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
