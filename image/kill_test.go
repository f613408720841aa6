package image

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"recast/inventory"
)

const killDir, killFrom, killTo = "RECAST_KILL_DIR", "RECAST_KILL_FROM", "RECAST_KILL_TO"

// TestBuildToBeKilled is the other process of the next test.
func TestBuildToBeKilled(t *testing.T) {
	dir := os.Getenv(killDir)
	if dir == "" {
		return
	}
	s := open(t, dir, Options{})
	os.Stdout.WriteString("begins\n")
	if _, err := s.Difference(t.Context(), inventory.Digest(os.Getenv(killFrom)), inventory.Digest(os.Getenv(killTo))); err != nil {
		t.Fatal(err)
	}
}

// TestABuildThatIsKilledLeavesNothingOrAll: kill -9 at several moments of a build.
func TestABuildThatIsKilledLeavesNothingOrAll(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	a, b := add(t, s, release(t, 0, 40, 2)), add(t, s, release(t, 3, 250, 3))
	s.Close()
	whole := 0
	for moment := range 12 {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestBuildToBeKilled$")
		cmd.Env = append(os.Environ(), killDir+"="+dir, killFrom+"="+string(a.Digest), killTo+"="+string(b.Digest))
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 7)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(moment) * 8 * time.Millisecond) // the moment, not a wait for anything
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		s := open(t, dir, Options{})
		d, ok := s.Built(a.Digest, b.Digest)
		want := filesOf(a, b)
		if ok {
			whole++
			want = filesWith([]Difference{d}, a, b)
		}
		if diff := cmp.Diff(want, files(t, dir)); diff != "" {
			t.Fatalf("killed at moment %d (-want +got):\n%s", moment, diff)
		}
		difference(t, s, a, b)
		s.change.Lock()
		err = s.dropDifferences(func(Difference) bool { return true })
		s.change.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	t.Logf("%d of 12 builds were done before they were killed", whole)
}
