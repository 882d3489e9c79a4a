FROM python:3.11-slim-bookworm
RUN apt-get update \
 && apt-get install -y --no-install-recommends postgresql \
 && rm -rf /var/lib/apt/lists/* /var/lib/postgresql/* \
 && ln -s /usr/lib/postgresql/*/bin /opt/postgresql \
 && groupadd --gid 70 standin && useradd --uid 70 --gid 70 standin \
 && install --directory --owner 70 --group 70 --mode 0700 /var/lib/postgresql/data
ENV PATH=/opt/postgresql:$PATH
COPY postgres.sh /
STOPSIGNAL SIGINT
ENTRYPOINT ["sh", "/postgres.sh"]
