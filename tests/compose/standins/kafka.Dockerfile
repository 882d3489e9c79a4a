FROM python:3.11-slim-bookworm
RUN useradd --uid 1000 appuser \
 && install --directory --owner appuser --group appuser \
    /var/lib/kafka/data /opt/kafka/config /opt/kafka/logs
COPY jre /opt/java
COPY jars /opt/kafka/libs
COPY kafka.py /opt/kafka/
ENV CLUSTER_ID=5L6g3nShT-eMCtK--X86sw
USER appuser
ENTRYPOINT ["python3", "/opt/kafka/kafka.py"]
