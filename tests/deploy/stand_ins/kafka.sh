#!/bin/sh
# Settings are the variables KAFKA_A_B as a.b, as with the real image.
set -euf
settings=/tmp/server.properties
logs=${KAFKA_LOG_DIRS:-/tmp/kafka-logs}  # Kafka's own default
env | grep '^KAFKA_' | grep -v '^KAFKA_HEAP_OPTS=' | while IFS='=' read -r name value; do
  echo "$(echo "${name#KAFKA_}" | tr 'A-Z_' 'a-z.')=$value"
done >"$settings"
run="java ${KAFKA_HEAP_OPTS:-} -Dlog4j2.level=INFO -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp /opt/kafka/libs/*"
if [ ! -s "$logs/meta.properties" ]; then
  $run kafka.tools.StorageTool format -t MkU3OEVBNTcwNTJENDM2Qk -c "$settings"
fi
exec $run kafka.Kafka "$settings"
