# In the place of the Kafka image: the jars that tests and `make run` use, and Debian's Java.
ARG PYTHON_IMAGE
FROM ${PYTHON_IMAGE}
# hadolint ignore=DL3008
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends netcat-openbsd openjdk-17-jre-headless >/dev/null \
    && rm -rf /var/lib/apt/lists/*
COPY jars /opt/kafka/libs
COPY kafka.sh /usr/local/bin/kafka.sh
RUN useradd --uid 1000 appuser && install -d -o appuser /var/lib/kafka/data && chmod 755 /usr/local/bin/kafka.sh
USER 1000
ENTRYPOINT ["/usr/local/bin/kafka.sh"]
