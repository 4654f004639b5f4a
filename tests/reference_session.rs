//! The object part of the API reference's shell session, with curl and jq, against the built server.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

const SESSION: &str = r##"
set -euo pipefail
WORKOS_API_KEY=$(cat "$DIR/api-key")
say() { printf '%s\n' "$*"; }
expect() { [ "$1" = "$2" ] || { say "expected '$2', got '$1': $3"; exit 1; }; }

# Test authentication
ANSWER=$(curl -s -X GET "$API/vault/object/list" \
  -H "Authorization: Bearer ${WORKOS_API_KEY}" \
  -w "\nHTTP Status: %{http_code}\n")
expect "$(tail -n1 <<<"$ANSWER")" "HTTP Status: 200" "list"
head -n1 <<<"$ANSWER" | jq -e '.data == []' >/dev/null
expect "$(curl -s "$API/vault/object/list" | jq -r .error)" unauthorized "without a key"

# 1. Create object
OBJECT_ID=$(curl -s -X POST "$API/vault/object/create" \
  -H "Authorization: Bearer ${WORKOS_API_KEY}" \
  -H "Content-Type: application/json" \
  -d '{ "name": "test_object_'$(date +%s)'", "data": {"test": "value"} }' | jq -r '.id')
say "Created object: $OBJECT_ID"
case $OBJECT_ID in vault_obj_*) ;; *) exit 1 ;; esac

# 2. Retrieve object
GOT=$(curl -s -X GET "$API/vault/object/get?id=$OBJECT_ID" \
  -H "Authorization: Bearer ${WORKOS_API_KEY}")
expect "$(jq -c '[.data, .version, (has("created_at") and has("updated_at"))]' <<<"$GOT")" \
  '[{"test":"value"},1,true]' "get"
NAME=$(jq -r .name <<<"$GOT")
expect "$(curl -s "$API/vault/object/get-by-name?name=$NAME" -H "Authorization: Bearer ${WORKOS_API_KEY}")" \
  "$GOT" "get-by-name"

# 3. Update object
UPDATED=$(curl -s -X PUT "$API/vault/object/update" \
  -H "Authorization: Bearer ${WORKOS_API_KEY}" \
  -H "Content-Type: application/json" \
  -d '{ "id": "'$OBJECT_ID'", "data": {"test": "updated_value"} }')
expect "$(jq -c '[.version, has("data")]' <<<"$UPDATED")" '[2,false]' "update"

# Versioning pattern
expect "$(curl -s "$API/vault/object/versions?id=$OBJECT_ID" -H "Authorization: Bearer ${WORKOS_API_KEY}" \
  | jq -c '[.data[].version]')" '[2,1]' "versions"
expect "$(curl -s "$API/vault/object/version?id=$OBJECT_ID&version=1" \
  -H "Authorization: Bearer ${WORKOS_API_KEY}" | jq -c .data)" '{"test":"value"}' "version 1"
expect "$(curl -s "$API/vault/object/metadata?id=$OBJECT_ID" -H "Authorization: Bearer ${WORKOS_API_KEY}" \
  | jq -c '[.version, has("data")]')" '[2,false]' "metadata"

# Pagination: initial request, next pages until list_metadata or data is empty, one page back
for n in $(seq 24); do
  curl -sf -o /dev/null -X POST "$API/vault/object/create" -H "Authorization: Bearer ${WORKOS_API_KEY}" \
    -d '{"name":"page/'$n'","data":{}}'
done
PAGES=0 SEEN=0 NEXT='' BACK=''
while :; do
  PAGE=$(curl -sf "$API/vault/object/list?limit=10${NEXT:+&after=$NEXT}" \
    -H "Authorization: Bearer ${WORKOS_API_KEY}")
  PAGES=$((PAGES + 1)) SEEN=$((SEEN + $(jq '.data | length' <<<"$PAGE")))
  BACK=$(jq -r '.list_metadata.before // empty' <<<"$PAGE")
  NEXT=$(jq -r '.list_metadata.after // empty' <<<"$PAGE")
  [ -n "$NEXT" ] || break
done
expect "$PAGES $SEEN" "3 25" "pages"
expect "$(curl -sf "$API/vault/object/list?limit=10&before=$BACK" \
  -H "Authorization: Bearer ${WORKOS_API_KEY}" | jq '.data | length')" 10 "back"

# 4. Delete object
DELETED=$(curl -s -X DELETE "$API/vault/object/delete" \
  -H "Authorization: Bearer ${WORKOS_API_KEY}" \
  -H "Content-Type: application/json" \
  -d '{"id": "'$OBJECT_ID'"}')
expect "$(jq -r .deleted <<<"$DELETED")" true "delete"
expect "$(curl -s -o /dev/null -w '%{http_code}' "$API/vault/object/get?id=$OBJECT_ID" \
  -H "Authorization: Bearer ${WORKOS_API_KEY}")" 404 "get after delete"
say done
"##;

#[test]
fn the_references_session_passes() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Command::new(env!("CARGO_BIN_EXE_vaultfs"))
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap());
    let mut url = String::new();
    lines.read_line(&mut url).unwrap();
    let session = Command::new("bash")
        .args(["-c", SESSION])
        .env("API", url.trim_end())
        .env("DIR", dir.path())
        .output()
        .unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    let said = String::from_utf8_lossy(&session.stdout);
    assert!(session.status.success(), "{said}{}", String::from_utf8_lossy(&session.stderr));
    assert!(said.ends_with("done\n"));
    // One line on standard output, and that was it.
    assert_eq!(lines.lines().count(), 0);
}
