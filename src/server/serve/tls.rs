//! The listeners' TLS certificate, which can be reloaded while connections are open.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use realign_core::files::{self, Limit};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

use crate::config::TlsFiles;

/// HTTP/2 in the negotiation of TLS connections.
pub(super) const HTTP2: &[u8] = b"h2";

const MAX_PEM: Limit = Limit::mib(1);

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or is not PEM.
    #[error("{}: {source}", path.display())]
    File {
        /// The certificate or key file.
        path: PathBuf,
        /// The parser's or the system's reason.
        source: pem::Error,
    },
    /// The file contains no certificate.
    #[error("{}: there is no certificate in it", path.display())]
    NoCertificate {
        /// The certificate file.
        path: PathBuf,
    },
    /// The key does not belong to the certificate, or one of them is malformed.
    #[error("the certificate {} and the key {} cannot be used: {source}", files.cert.display(), files.key.display())]
    Unusable {
        /// Certificate and key.
        files: TlsFiles,
        /// The TLS library's reason.
        source: rustls::Error,
    },
}

/// The certificate in use.
#[derive(Debug)]
pub(super) struct Tls {
    files: TlsFiles,
    config: ArcSwap<ServerConfig>,
}

impl Tls {
    pub(super) fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        Ok(Self {
            files: files.clone(),
            config: ArcSwap::from(read(files)?),
        })
    }

    /// Reads the files again for new connections; on an error the current certificate stays in use.
    pub(super) fn reload(&self) -> Result<(), TlsError> {
        self.config.store(read(&self.files)?);
        Ok(())
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }
}

fn read(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let file = |path: &PathBuf, source| TlsError::File {
        path: path.clone(),
        source,
    };
    let pem = |path: &PathBuf| {
        let read = files::read(path, MAX_PEM);
        read.map_err(|source| file(path, pem::Error::Io(source)))
    };
    let chain = CertificateDer::pem_slice_iter(&pem(&files.cert)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| file(&files.cert, source))?;
    if chain.is_empty() {
        let path = files.cert.clone();
        return Err(TlsError::NoCertificate { path });
    }
    let key = PrivateKeyDer::from_pem_slice(&pem(&files.key)?)
        .map_err(|source| file(&files.key, source))?;
    let unusable = |source| TlsError::Unusable {
        files: files.clone(),
        source,
    };
    // Passed explicitly, so that the process-wide default provider stays as the application set it.
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
