#!/usr/bin/env bash
# Makes the certificate that tests/e2e/keys.rs serves with: for localhost and 127.0.0.1, its own authority, good from 2020 to 2120.
# It guards nothing, and its key is public. `other-key.pem` is a key that does not go with it.
set -euo pipefail
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
touch "$work/index"
cat > "$work/config" <<CONFIG
[ca]
default_ca = itself
[itself]
database = $work/index
new_certs_dir = $work
rand_serial = yes
policy = any
x509_extensions = extensions
[any]
commonName = supplied
[req]
distinguished_name = name
prompt = no
[name]
CN = Retune tests
[extensions]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, IP:127.0.0.1
CONFIG
curve=(-algorithm EC -pkeyopt ec_paramgen_curve:prime256v1)
openssl genpkey "${curve[@]}" -out key.pem
openssl genpkey "${curve[@]}" -out other-key.pem
openssl req -new -config "$work/config" -key key.pem -out "$work/request"
openssl ca -batch -notext -selfsign -md sha256 -config "$work/config" -keyfile key.pem -in "$work/request" -out cert.pem \
  -startdate 20200101000000Z -enddate 21200101000000Z
