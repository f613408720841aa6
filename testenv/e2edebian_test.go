package testenv

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// debianWord is user data that writes a file, and says on the console what the
// running system then holds.
func debianWord(word string) string {
	return `#cloud-config
hostname: ${machine.name}
write_files:
  - path: /etc/recast-word
    content: |
      ${machine.name} says ` + word + `
runcmd:
  - ['sh', '-c', 'echo "word: $(cat /etc/recast-word), host $(hostname), instance $(cat /var/lib/cloud/data/instance-id), $(. /etc/os-release; echo $ID)" >/dev/ttyS0']
`
}

// TestDebianRack brings both machines to a Debian with systemd and cloud-init,
// from powered-off machines and an empty store.
func TestDebianRack(t *testing.T) {
	s := newStory(t, storySetup{OS: OSDebian, Takes: 12 * time.Minute})
	img := s.image("")
	s.ready(img)
	s.declare(RackDeclare{Image: img.Digest, UserData: debianWord("one")})
	p := s.apply("--erase", "r1u01,r1u02")
	if p.machines() != "write r1u01, write r1u02" {
		t.Fatalf("the plan would %s", p.machines())
	}
	s.active(p, 11*time.Minute)
	for _, e := range p.Entries {
		// Each attempt is an instance of its own: machine, generation, attempt.
		want := fmt.Sprintf("%s says one, host %s, instance %s-%s-1, debian", e.Machine, e.Machine, e.Machine, e.To.Short())
		if got := strings.TrimSpace(s.says(e.Machine, 0, `word: (.* says .*)\r?\n`, 3*time.Minute)[1]); got != want {
			t.Errorf("%s says %q, want %q", e.Machine, got, want)
		}
	}
}
