package capture

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"recast/testenv"
)

// filled ends the capture when it has seen as much as it waits for.
type filled struct {
	mu  sync.Mutex
	buf bytes.Buffer
	has []byte
	end context.CancelFunc
}

func (f *filled) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.buf.Write(b)
	if bytes.Count(f.buf.Bytes(), f.has) == 2 { // it may have begun in the middle of the first round
		f.end()
	}
	return len(b), nil
}

func TestFileShowsTheVLANOfAFrame(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip (apt-get install iproute2)")
	}
	in := udp(all, ours, "\x00\x00\x00\x00", "\xff\xff\xff\xff", 68, 67, dhcp(ours, "\xff"))
	inVLAN := tagged(in, "\x60\x64")
	arp := append([]byte(all+ours+"\x08\x06"), bytes.Repeat([]byte{7}, 28)...)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	file := &filled{has: arp, end: cancel}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread's namespace ends with it
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			tap, err := testenv.NewTap("eth0")
			if err != nil {
				return err
			}
			defer tap.Close()
			if out, err := exec.Command("ip", "link", "set", "eth0", "up").CombinedOutput(); err != nil {
				return errors.New(string(out))
			}
			sent := make(chan struct{})
			defer func() { <-sent }()
			go func() {
				defer close(sent)
				again := time.NewTicker(time.Millisecond)
				defer again.Stop()
				for ctx.Err() == nil { // until the capture has begun
					for _, b := range [][]byte{inVLAN, in, arp} {
						_, _ = tap.Write(b)
					}
					<-again.C
				}
			}()
			return Run(ctx, Options{Interfaces: []string{"eth0"}, MACs: options.MACs, Addrs: options.Addrs, BootPort: 8080, AgentPort: 8443}, file)
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	got := file.buf.Bytes()
	for name, frame := range map[string][]byte{"with a tag": inVLAN, "without": in, "of ARP": arp} {
		if !bytes.Contains(got, frame) {
			t.Errorf("the file lacks the frame %s %x; it is %x", name, frame, got)
		}
	}
}
