-- The gateway's own SSH keys, with --ssh-keys database: what clients see and
-- what containers trust, so that all who share this database are one gateway.
-- Secrets: whoever reads them can pose as the gateway and log in to containers.
CREATE TABLE gateway_keys (
    -- ssh_host_ed25519, ssh_host_rsa, ssh_client_ed25519.
    name TEXT PRIMARY KEY,
    -- OpenSSH's private key format, not encrypted.
    secret TEXT NOT NULL
);
