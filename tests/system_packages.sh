#!/bin/sh
# Installs, from Debian, what the SLURM and browser tests need. Without root the tests skip, with words.
need=""
command -v slurmctld >/dev/null 2>&1 || [ -x /usr/sbin/slurmctld ] || need="$need slurm-wlm munge"
command -v chromium >/dev/null 2>&1 || need="$need chromium"
[ -n "$need" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "not installed:$need; tests that need them will be skipped (run as root on Debian to have them)"
  exit 0
fi
# The packages' own services stay down: the tests start their own daemons.
policy=/usr/sbin/policy-rc.d
made=0
[ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy && made=1; }
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $need >"$log" 2>&1 </dev/null ||
  { apt-get update -qq >>"$log" 2>&1 </dev/null && apt-get install -y -qq --no-install-recommends $need >>"$log" 2>&1 </dev/null; } ||
  { tail -5 "$log"; echo "could not install:$need; tests that need them will be skipped"; }
rm -f "$log"
[ $made = 0 ] || rm -f $policy
exit 0
