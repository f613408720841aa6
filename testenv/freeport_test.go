package testenv

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Two test programs that ask at the same time are given different ports, though neither
// listens yet.
func TestNoPortIsGivenToTwoTestPrograms(t *testing.T) {
	const ports = 500
	if os.Getenv("RECAST_FREE_PORTS") != "" {
		for range ports {
			port, err := FreePort()
			if err != nil {
				t.Fatal(err)
			}
			fmt.Printf("port %d\n", port)
		}
		return
	}
	ours := map[string]bool{}
	for range ports {
		port, err := FreePort()
		if err != nil {
			t.Fatal(err)
		}
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.2:%d", port)); err != nil {
			t.Error(err)
		} else {
			l.Close()
		}
		ours[fmt.Sprint(port)] = true
	}
	if len(ours) != ports {
		t.Errorf("%d ports are %d", ports, len(ours))
	}
	other := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	other.Env = append(os.Environ(), "RECAST_FREE_PORTS=1")
	out, err := other.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	theirs := 0
	for line := range strings.Lines(string(out)) {
		if port, ok := strings.CutPrefix(strings.TrimSpace(line), "port "); ok {
			theirs++
			if ours[port] {
				t.Errorf("port %s is given twice", port)
			}
		}
	}
	if theirs != ports {
		t.Errorf("the other has %d ports: %s", theirs, out)
	}
}
