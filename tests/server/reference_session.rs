//! The API reference's shell session, with curl and jq, against the built server: lifecycle, key
//! flow, paging, each row of the error table, the rate limit.

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

# Test key management flow: 1. Create data key
KEY_RESPONSE=$(curl -s -X POST "$API/vault/key/create-data-key" \
  -H "Authorization: Bearer ${WORKOS_API_KEY}" \
  -H "Content-Type: application/json")
PLAINTEXT_KEY=$(echo $KEY_RESPONSE | jq -r '.plaintext_key')
ENCRYPTED_KEY=$(echo $KEY_RESPONSE | jq -r '.encrypted_key')
expect "$(base64 -d <<<"$PLAINTEXT_KEY" | wc -c)" 32 "data key"

# 2. Encrypt data
CIPHERTEXT=$(curl -s -X POST "$API/vault/key/encrypt-data" \
  -H "Authorization: Bearer ${WORKOS_API_KEY}" \
  -H "Content-Type: application/json" \
  -d '{ "plaintext": "secret data", "data_key": "'$PLAINTEXT_KEY'" }' | jq -r '.ciphertext')
case $(base64 -d <<<"$CIPHERTEXT" | tr -d '\0') in *"secret data"*) exit 1 ;; esac

# Envelope encryption pattern: the stored encrypted_key gives the plaintext_key back
PLAINTEXT_KEY=$(curl -s -X POST "$API/vault/key/decrypt-data-key" \
  -H "Authorization: Bearer ${WORKOS_API_KEY}" \
  -d '{ "encrypted_key": "'$ENCRYPTED_KEY'" }' | jq -r '.plaintext_key')

# 3. Decrypt data
expect "$(curl -s -X POST "$API/vault/key/decrypt-data" \
  -H "Authorization: Bearer ${WORKOS_API_KEY}" \
  -H "Content-Type: application/json" \
  -d '{ "ciphertext": "'$CIPHERTEXT'", "data_key": "'$PLAINTEXT_KEY'" }')" '{"plaintext":"secret data"}' "decrypt"

# Error code mapping: each row but 500, which nothing provokes
row() { # STATUS TYPE KEY METHOD PATH [BODY]
  local got
  got=$(curl -s -w '%{http_code}' -X "$4" "$API$5" ${3:+-H "Authorization: Bearer $3"} ${6:+-d "$6"})
  expect "${got: -3}" "$1" "$got"
  expect "$(jq -r .error <<<"${got%???}")" "$2" "$got"
  expect "$(jq -r '.message | length > 20' <<<"${got%???}")" true "$got"
}
curl -sf -o /dev/null -X POST "$API/vault/object/create" -H "Authorization: Bearer ${WORKOS_API_KEY}" \
  -d '{"name":"taken","data":{}}'
READER=$("$VAULTFS" serve --data "$DIR" key add --permissions read --name reader 2>/dev/null)
row 400 invalid_request "$WORKOS_API_KEY" POST /vault/object/create '{"name":"x"}'
row 401 unauthorized '' GET /vault/object/list
row 401 unauthorized sk_unknown GET /vault/object/list
row 403 forbidden "$READER" POST /vault/object/create '{"name":"x","data":{}}'
row 403 forbidden "$READER" POST /vault/key/create-data-key
row 404 not_found "$WORKOS_API_KEY" PUT /vault/object/update '{"id":"'$OBJECT_ID'","data":{}}'
row 409 conflict "$WORKOS_API_KEY" POST /vault/object/create '{"name":"taken","data":{}}'
row 422 unprocessable_entity "$WORKOS_API_KEY" POST /vault/object/create '{"name":"x","data":"text"}'
row 422 unprocessable_entity "$WORKOS_API_KEY" POST /vault/key/encrypt-data '{"plaintext":"x","data_key":"corrupt"}'

# Rate limit guidance: 1000 requests a minute, and the headers that say so
HURRIED=$("$VAULTFS" serve --data "$DIR" key add --permissions read --name hurried 2>/dev/null)
headers() { curl -s -o /dev/null -D - "$API/vault/object/list" -H "Authorization: Bearer $HURRIED" | tr -d '\r'; }
header() { sed -n "s/^$2: //Ip" <<<"$1"; }
FIRST=$(headers)
expect "$(header "$FIRST" X-RateLimit-Limit) $(header "$FIRST" X-RateLimit-Remaining)" "1000 999" "headers"
curl -sf -o /dev/null "$API/vault/object/list?limit=1&n=[1-999]" -H "Authorization: Bearer $HURRIED"
row 429 rate_limit_exceeded "$HURRIED" GET /vault/object/list
LAST=$(headers)
expect "$(header "$LAST" X-RateLimit-Remaining)" 0 "remaining"
WAIT=$(header "$LAST" Retry-After)
expect "$(header "$LAST" X-RateLimit-Reset)" "$WAIT" "reset"
[ "$WAIT" -ge 1 ] && [ "$WAIT" -le 60 ]
# Another key is not slowed down.
curl -sf -o /dev/null "$API/vault/object/list" -H "Authorization: Bearer ${WORKOS_API_KEY}"
if [ -n "${VAULTFS_TEST_ALL:-}" ]; then
  sleep "$WAIT"
  expect "$(header "$(headers)" X-RateLimit-Remaining)" 999 "recovered"
fi
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
        .env("VAULTFS", env!("CARGO_BIN_EXE_vaultfs"))
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
