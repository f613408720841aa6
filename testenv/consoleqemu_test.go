package testenv

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"recast/bmc"
)

// TestConsoleOfARealMachine: firmware, boot loader and kernel are read through both
// kinds of BMC, over a power cycle, and what is typed reaches the machine.
func TestConsoleOfARealMachine(t *testing.T) {
	m := qemuForTest(t, FirmwareBIOS, BusAHCI)
	overIPMI := ipmiBMC(t, m, IPMIOptions{UUID: m.UUID, Serial: m.Serial})
	overSSH, _ := sshBMC(t, m, RedfishOptions{UUID: m.UUID, Serial: m.Serial})
	var fleet bmc.Fleet
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = fleet.Close(ctx)
	})
	for _, target := range []bmc.Target{
		{URL: overIPMI.URL(), User: "admin", Password: "secret"},
		{URL: overSSH.URL(), User: "admin", Password: "secret", Pin: overSSH.Pin(), HostKey: overSSH.HostKey()},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		line, err := fleet.Console(ctx, target, bmc.ConsoleOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var said []byte
		read := make(chan struct{})
		go func() {
			defer close(read)
			buf := make([]byte, 4<<10)
			for {
				n, err := line.Read(buf)
				mu.Lock()
				said = append(said, buf[:n]...)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		}()
		sees := func(text string, n int) {
			t.Helper()
			await(t, line.Way()+": "+text, 3*time.Minute, func() bool {
				mu.Lock()
				defer mu.Unlock()
				return bytes.Count(said, []byte(text)) >= n
			})
		}
		power := func(on bool) {
			t.Helper()
			if err := fleet.Do(ctx, target, func(ctx context.Context, c bmc.Client) error {
				if on {
					return c.On(ctx)
				}
				return c.Off(ctx, true)
			}); err != nil {
				t.Fatal(err)
			}
		}
		for start := range 2 {
			power(true)
			sees("recast-tiny: machine=", start+1)
			if _, err := line.Write([]byte("\r")); err != nil {
				t.Error(err)
			}
			if err := line.Break(); err != nil {
				t.Error(err)
			}
			power(false)
		}
		if err := line.Close(); err != nil {
			t.Error(err)
		}
		<-read
	}
}
