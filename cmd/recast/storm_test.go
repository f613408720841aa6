package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"recast/web"
)

// A room comes back after a power failure: whoever finds no place is told so and asks
// again, a place is free again once a ramdisk was sent whole, and everybody claims.
func TestARoomThatComesBackBootsInTurns(t *testing.T) {
	const machines, places = 60, 8
	s := newStormServer(t, -1, machines, places, 5)
	buf := make([]byte, 8<<10)
	left := map[int]bool{}
	for i := range machines {
		left[i] = true
	}
	for round := 0; len(left) > 0; round++ {
		if round > machines {
			t.Fatalf("%d machines are left after %d rounds", len(left), round)
		}
		var served []int
		for i := range left {
			body, err := askAs(i, s.boot, scriptOf(i), buf)
			switch {
			case err != nil:
				t.Fatal(err)
			case bytes.Contains(body, []byte(stormArmed)):
				served = append(served, i)
			case !bytes.Contains(body, []byte("waits for its turn")):
				t.Fatalf("machine %d gets %q", i, body)
			}
		}
		if want := min(places, len(left)); len(served) != want {
			t.Fatalf("%d of %d machines are served at once, want %d", len(served), len(left), want)
		}
		for _, i := range served {
			if n, err := fetchAs(i, s.boot, web.RamdiskPath+"initrd.img"); n != 5<<20 || err != nil {
				t.Fatalf("machine %d fetches %d bytes of its ramdisk, %v", i, n, err)
			}
			delete(left, i)
		}
	}
	// They have their ramdisk and claim, after another look at their script.
	for i := range places {
		if _, err := s.claim(i, buf); err != nil {
			t.Errorf("machine %d: %v", i, err)
		}
	}
	await(t, "every boot on record", func() bool {
		text, code := recast(t, strings.NewReader(""), "get", "machines")
		return code == exitOK && strings.Count(text, "inspecting") == places && strings.Count(text, "claiming") == machines-places
	})
}

// fetchAs fetches a file whole as machine i.
func fetchAs(i int, server, path string) (int64, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: stormAddr(i).AsSlice()}}
	c := http.Client{Transport: &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true}, Timeout: time.Minute}
	resp, err := c.Get("http://" + server + path)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err == nil && resp.Header.Get("Content-Length") != strconv.FormatInt(n, 10) {
		err = fmt.Errorf("%s were announced", resp.Header.Get("Content-Length"))
	}
	return n, err
}
