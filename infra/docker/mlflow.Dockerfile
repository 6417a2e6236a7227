# The MLflow server with logins; its data is in PostgreSQL and S3.
#   docker build -f infra/docker/mlflow.Dockerfile -t multi-shot-reid-mlflow:0.1.0 .
ARG BASE_IMAGE=debian:bookworm-slim
# hadolint ignore=DL3006 # the argument has a tag
FROM ${BASE_IMAGE}
COPY infra/docker/constraints.txt /tmp/
# hadolint ignore=DL3008 # the release of Debian fixes their versions
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --home-dir /home/mlflow --create-home --shell /usr/sbin/nologin mlflow \
    && python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --constraint /tmp/constraints.txt \
        'mlflow[auth]' boto3 prometheus-flask-exporter psycopg2-binary
COPY infra/docker/mlflow-entrypoint.sh infra/docker/mlflow_users.py /opt/mlflow/
# A database that was created with the encoding SQL_ASCII would refuse the notes of runs.
ENV PATH=/opt/venv/bin:$PATH HOME=/home/mlflow PYTHONUNBUFFERED=1 PGCLIENTENCODING=UTF8
USER 10001
EXPOSE 5000
# tini: MLflow as process 1 ignores SIGTERM.
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/mlflow/mlflow-entrypoint.sh"]
CMD ["server"]
