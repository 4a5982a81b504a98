#!/bin/sh
# Runs the published tests of python-pkcs11 twice, on a bare SoftHSM token and through the slot of a group of two, and
# compares: a test that passes on one and fails or is skipped on the other is a difference.
#
#   cargo build -p ha-module && ha-module/tests/python_pkcs11.sh [target/debug/libha_module.so]
#
# The tests and what they need come from the Python package index. Their tokens are made anew.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
module=$(realpath "${1:-$here/target/debug/libha_module.so}")
softhsm=${SOFTHSM:-/usr/lib/softhsm/libsofthsm2.so}
[ -f "$module" ] || { echo "$module: not there; build it with cargo build -p ha-module" >&2; exit 2; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q cryptography==50.0.2 parameterized==0.9.0 pytest==9.2.0 python-pkcs11==0.10.1
"$work/venv/bin/pip" download -q --no-deps --no-binary :all: -d "$work" python-pkcs11==0.10.1
echo "e0d7ccede3b3145a678d7c8c59b3c64dcebeb77c9146ad3394a4b1309c4ab2a2  $work/python_pkcs11-0.10.1.tar.gz" | sha256sum --check --quiet
tar -xzf "$work/python_pkcs11-0.10.1.tar.gz" -C "$work" python_pkcs11-0.10.1/tests
mkdir "$work/run" "$work/named"
mv "$work/python_pkcs11-0.10.1/tests" "$work/run"
# Some of the tests are for SoftHSM only, which they know by its file's name.
cp "$module" "$work/named/libsofthsm2.so"

for name in bare a b; do
    mkdir "$work/$name"
    printf 'directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n' "$work/$name" > "$work/$name.conf"
    SOFTHSM2_CONF="$work/$name.conf" softhsm2-util --init-token --free --label "$name" --pin 1234 --so-pin 5678 > /dev/null
done
{
    printf 'state_dir = "%s"\n[log]\ntarget = "file:%s/module.log"\n\n[[group]]\nlabel = "group"\ninit_token = "all"\n' "$work/state" "$work"
    for name in a b; do
        printf '\n[[group.member]]\nmodule = "%s"\ntoken = "%s"\ninstance = "private"\nenv = { SOFTHSM2_CONF = "%s" }\n' \
            "$softhsm" "$name" "$work/$name.conf"
    done
} > "$work/ha.toml"
chmod 600 "$work/ha.toml"

# What must differ, and why. Everything else must be the same.
cat > "$work/explained" <<'END'
test_get_slots    it expects SoftHSM's slot for a token to come besides the token's own
test_get_tokens   the same
END

export PKCS11_TOKEN_PIN=1234 PKCS11_TOKEN_SO_PIN=5678
results() {
    (cd "$work/run" && timeout 600 "$work/venv/bin/python" -m pytest -q -rA tests > "$work/$1.log" 2>&1) || true
    grep -E '^(PASSED|FAILED|SKIPPED|ERROR)' "$work/$1.log" | sed 's/ - .*//' | sort > "$work/$1.results"
    echo "$1: $(tail -n 1 "$work/$1.log")"
}
export PKCS11_MODULE=$softhsm PKCS11_TOKEN_LABEL=bare SOFTHSM2_CONF="$work/bare.conf"
results bare
export PKCS11_MODULE="$work/named/libsofthsm2.so" PKCS11_TOKEN_LABEL=group SOFTHSM2_CONF=/nonexistent PKCS11_HA_CONF="$work/ha.toml"
results group

[ -s "$work/bare.results" ] || { tail -n 30 "$work/bare.log"; exit 2; }
unexplained=$(diff "$work/bare.results" "$work/group.results" | sed -n 's/^[<>] [A-Z]* .*:://p' | sort -u |
    while read -r name; do grep -q "^$name " "$work/explained" || echo "$name"; done)
if [ -n "$unexplained" ]; then
    [ -z "${LOG_DIR:-}" ] || cp "$work"/*.log "$LOG_DIR"
    echo "different (set LOG_DIR to keep the logs): $unexplained" >&2
    exit 1
fi
echo "the same, but for:"
sed 's/^/  /' "$work/explained"
