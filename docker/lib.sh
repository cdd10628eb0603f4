# Source this file: what up.sh and down.sh have in common. Run in docker/.

project=${COMPOSE_PROJECT_NAME:-torc}
# core, full or offline; also names the file of variables.
profile=${profile:-core}

say() { printf '%s\n' "$*"; }
fail() { printf '%s\n' "$*" >&2; exit 1; }

command -v docker >/dev/null 2>&1 || fail "docker is not installed (https://docs.docker.com/engine/install)"
docker info >/dev/null 2>&1 || fail "no docker engine answers; 'docker info' says why"

# From version 2 on it is a plugin of docker, version 1 is a program of its own. TORC_COMPOSE=1 or 2 insists on one.
if [ "${TORC_COMPOSE:-2}" = 2 ] && docker compose version >/dev/null 2>&1; then
  compose() { docker compose -p "$project" -f compose.yaml --env-file "env/$profile.env" --profile "$profile" "$@"; }
elif [ "${TORC_COMPOSE:-1}" = 1 ] && command -v docker-compose >/dev/null 2>&1; then
  compose() { docker-compose -p "$project" -f compose.yaml --env-file "env/$profile.env" --profile "$profile" "$@"; }
else
  fail "neither 'docker compose' nor docker-compose is installed${TORC_COMPOSE:+, or not version $TORC_COMPOSE}"
fi
