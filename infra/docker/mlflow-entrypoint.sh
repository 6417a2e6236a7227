#!/bin/sh
# MLflow with logins: `server`, or `users`, which creates the logins of MLFLOW_USERS_DIR.
#
# Secrets are read from the files MLFLOW_DATABASE_PASSWORD_FILE, MLFLOW_ADMIN_PASSWORD_FILE and MLFLOW_SECRET_KEY_FILE
# (which signs the forms of the web pages). MLFLOW_DATABASE is an address without a password, MLFLOW_ARTIFACTS an
# address of a bucket (s3://) or a folder (file://), and MLFLOW_ALLOWED_HOSTS lists the names at which browsers and clients may reach the server.
set -eu
umask 077

given() {
    eval "value=\${$1:-}"
    [ -n "$value" ] || { echo "$1 is not set" >&2; exit 2; }
}

secret() {
    given "$1"
    [ -s "$value" ] || { echo "$1: $value is empty or not there" >&2; exit 2; }
    secret=$(cat "$value")
}

secret MLFLOW_ADMIN_PASSWORD_FILE
export MLFLOW_AUTH_ADMIN_USERNAME=admin MLFLOW_AUTH_ADMIN_PASSWORD="$secret"

case "${1:-server}" in
server)
    shift $(($# > 0))
    given MLFLOW_DATABASE
    given MLFLOW_ARTIFACTS
    given MLFLOW_ALLOWED_HOSTS
    secret MLFLOW_SECRET_KEY_FILE
    export MLFLOW_FLASK_SERVER_SECRET_KEY="$secret"
    if [ -n "${MLFLOW_DATABASE_PASSWORD_FILE:-}" ]; then
        secret MLFLOW_DATABASE_PASSWORD_FILE
        export PGPASSWORD="$secret"
    fi
    # Loading a pickle can run any code.
    export MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false MLFLOW_DISABLE_TELEMETRY=true
    # Saves eight processes of 240 MB for jobs that sweeps do not use.
    export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
    # Routes without a permission rule are refused.
    export MLFLOW_BASIC_AUTH_FAIL_CLOSED=true
    work=$(mktemp -d)
    export MLFLOW_AUTH_CONFIG_PATH="$work/auth.ini"
    cat > "$MLFLOW_AUTH_CONFIG_PATH" <<EOF
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = $MLFLOW_DATABASE
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
EOF
    exec mlflow server --app-name basic-auth \
        --host "${MLFLOW_HOST:-0.0.0.0}" --port "${MLFLOW_PORT:-5000}" --workers "${MLFLOW_WORKERS:-2}" \
        --backend-store-uri "$MLFLOW_DATABASE" \
        --artifacts-destination "$MLFLOW_ARTIFACTS" --serve-artifacts \
        --allowed-hosts "$MLFLOW_ALLOWED_HOSTS" --cors-allowed-origins "${MLFLOW_ORIGINS:-http://localhost:5000}" \
        --expose-prometheus "$work/metrics" "$@"
    ;;
users)
    given MLFLOW_USERS_DIR
    given MLFLOW_TRACKING_URI
    exec python "$(dirname "$0")/mlflow_users.py" "$MLFLOW_TRACKING_URI" "$MLFLOW_USERS_DIR"
    ;;
*)
    echo "$1: write server or users" >&2
    exit 2
    ;;
esac
