# Takes a lab away when its owner goes: waits for the end of stdin, which comes however the owner ends. The word "keep"
# means that the lab stays. $1 is the network namespace; every process in it belongs to the lab.
trap '' INT TERM HUP
if read -r word && [ "$word" = keep ]; then exit 0; fi
[ -e "/run/netns/$1" ] || exit 0
left() { ip netns pids "$1" 2>/dev/null; }
for pid in $(left "$1"); do kill -TERM "$pid" 2>/dev/null; done
tries=0
while [ -n "$(left "$1")" ] && [ $tries -lt 30 ]; do sleep 0.1; tries=$((tries + 1)); done
tries=0
while [ -n "$(left "$1")" ] && [ $tries -lt 50 ]; do
    for pid in $(left "$1"); do kill -KILL "$pid" 2>/dev/null; done
    sleep 0.1; tries=$((tries + 1))
done
ip netns delete "$1"
