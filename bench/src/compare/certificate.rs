//! `edd-bench certificate`: the one certificate that every proxy of a comparison presents.
//!
//! A CA and a leaf with ECDSA P-256 keys, as a public CA issues them today, in the files that
//! each proxy wants: chain and key apart, and both in one.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
};

/// The arguments of `edd-bench certificate`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the files go: `ca.crt`, `tls.crt`, `tls.key`, `tls.pem`
    #[arg(long)]
    pub(crate) folder: PathBuf,
    /// The names in the leaf
    #[arg(required = true)]
    pub(crate) names: Vec<String>,
}

/// Writes the files.
pub(crate) fn run(args: Args) -> Result<()> {
    let key = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot make a key");
    let mut ca = CertificateParams::default();
    ca.distinguished_name
        .push(DnType::CommonName, "edd-bench CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = key()?;
    let ca_certificate = ca.self_signed(&ca_key).context("cannot make the CA")?;
    let leaf = CertificateParams::new(args.names).context("a name no certificate may have")?;
    let leaf_key = key()?;
    let leaf = leaf
        .signed_by(&leaf_key, &Issuer::new(ca, ca_key))
        .context("cannot make the leaf")?;
    let (certificate, key) = (leaf.pem(), leaf_key.serialize_pem());
    for (name, contents) in [
        ("ca.crt", &ca_certificate.pem()),
        ("tls.crt", &certificate),
        ("tls.key", &key),
        ("tls.pem", &format!("{certificate}{key}")),
    ] {
        let path = args.folder.join(name);
        fs::write(&path, contents).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
