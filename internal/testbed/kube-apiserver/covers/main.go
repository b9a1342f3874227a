// Command covers says by Kubernetes' own code whether some RBAC rules cover others. It
// reads a JSON object a line, {"owner": [...], "servant": [...]}, and answers true or
// false.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/component-helpers/auth/rbac/validation"
)

func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var asked struct{ Owner, Servant []rbacv1.PolicyRule }
		if err := json.Unmarshal(in.Bytes(), &asked); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		covered, _ := validation.Covers(asked.Owner, asked.Servant)
		fmt.Println(covered)
	}
}
