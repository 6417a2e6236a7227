#!/usr/bin/env bash
# Create the secrets of this server that do not exist yet. Run it before the first `docker compose up` and after every
# update; to replace a secret, delete its file and run it again. `FOLDER=... ./bootstrap.sh` writes to another folder.
set -euo pipefail
umask 077
cd "$(dirname "$0")"
folder=${FOLDER:-secrets}
mkdir -p "$folder/mlflow-users"
chmod 700 "$folder" "$folder/mlflow-users"

# The users of the containers have to read the files, so the files are readable; the folder around them is not.
write() { # FILE COMMAND...
    local file=$1
    shift
    "$@" > "$file.new"
    chmod 444 "$file.new"
    mv -f "$file.new" "$file"
}
once() {
    [ -s "$1" ] || { write "$@" && made=$((made + 1)); }
}
made=0

password() { openssl rand -hex 24; }
for name in postgres-password mlflow-admin-password mlflow-secret-key grafana-admin-password ray-auth-token; do
    once "$folder/$name" password
done
for user in sweep reader prometheus; do
    once "$folder/mlflow-users/$user" password
done

keys() {
    printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$1-$(openssl rand -hex 4)" "$(password)"
}
for user in admin mlflow sweep; do
    once "$folder/aws-$user" keys "$user"
done

certificate() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=seaweedfs \
        -keyout /dev/stdout -out /dev/stdout 2> /dev/null
}
once "$folder/s3-grpc.pem" certificate

webhook() { echo https://chat.invalid/replace-me; }
once "$folder/alert-webhook" webhook

# Files that are derived from other secrets are written every time.
credentials() {
    printf '[mlflow]\nmlflow_tracking_username = sweep\nmlflow_tracking_password = %s\n' \
        "$(cat "$folder/mlflow-users/sweep")"
}
write "$folder/mlflow-credentials" credentials

field() { sed -n "s/^$2 = //p" "$folder/aws-$1"; }
identity() {
    printf '{"name": "%s", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": [%s]}' \
        "$1" "$(field "$1" aws_access_key_id)" "$(field "$1" aws_secret_access_key)" "$2"
}
on() { printf '"Read:%s", "Write:%s", "List:%s", "Tagging:%s"' "$1" "$1" "$1" "$1"; }
identities() {
    printf '{"identities": [\n%s,\n%s,\n%s\n]}\n' \
        "$(identity admin '"Admin"')" "$(identity mlflow "$(on mlflow)")" "$(identity sweep "$(on sweeps)")"
}
write "$folder/s3.json" identities

# A secret that was not created here has to be long, too.
for file in "$folder"/{s3-grpc.pem,postgres-password,mlflow-admin-password,mlflow-secret-key,grafana-admin-password,ray-auth-token} "$folder"/mlflow-users/*; do
    if [ "$(tr -d '\n' < "$file" | wc -c)" -lt 16 ]; then
        echo "error: $file: shorter than 16 characters; delete it and rerun the command to create a new one" >&2
        exit 2
    fi
done
echo "created $made secrets in $folder, which only $(id -un) can open"
