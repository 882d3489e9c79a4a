#!/bin/sh -eu
# Copies what must survive out of the stack's volumes, or back into fresh ones.
#
#   backup.sh save FOLDER     the stack is stopped: docker compose stop
#   backup.sh restore FOLDER  the stack is down:    docker compose down --volumes
#
# COMPOSE_PROJECT_NAME says whose volumes, by default gpuloop's. What must survive: the topics (they
# hold decisions, audit and policies), the twin's ledger, and the keys of learner and auditor. What
# is saved is as secret as those keys: only root can read it.

what=$1
folder=$(cd "$2" && pwd)
project=${COMPOSE_PROJECT_NAME:-gpuloop}
image=${GPULOOP_IMAGE:-gpuloop-base:0.1.0}

for volume in kafka twin learner auditor; do
  whole=${project}_$volume
  case $what in
    save)
      docker run --rm --network none --user 0 --entrypoint sh \
        --volume "$whole:/from:ro" --volume "$folder:/to" "$image" \
        -c 'umask 077 && exec tar -C /from -cf "/to/$1.tar" .' save "$volume"
      ;;
    restore)
      docker volume create --label "com.docker.compose.project=$project" \
        --label "com.docker.compose.volume=$volume" "$whole" >/dev/null
      docker run --rm --network none --user 0 --entrypoint tar \
        --volume "$whole:/to" --volume "$folder:/from:ro" "$image" \
        -C /to --numeric-owner -xpf "/from/$volume.tar"
      ;;
    *)
      echo "usage: backup.sh save|restore FOLDER" >&2
      exit 2
      ;;
  esac
done
