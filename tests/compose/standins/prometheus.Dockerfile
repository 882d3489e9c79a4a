FROM python:3.11-slim-bookworm
RUN apt-get update \
 && apt-get install -y --no-install-recommends prometheus wget \
 && rm -rf /var/lib/apt/lists/* \
 && install --directory --owner 65534 --group 65534 /prometheus
ENTRYPOINT ["prometheus"]
