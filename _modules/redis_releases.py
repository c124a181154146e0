"""
Redis releases and the sha256 digests that upstream publishes for their tarballs.

Source: https://github.com/redis/redis-hashes (file ``README``), final releases from 6.2.0 on; 6.2 is the oldest that
Sidekiq 7 works with. The digests belong to the tarballs of download.redis.io; archives that GitHub makes of a tag, and
the tarballs that distributions carry, are other files with other digests.
"""

from __future__ import annotations

from salt.exceptions import SaltInvocationError

__virtualname__ = "redis_releases"

DOWNLOADS = "https://download.redis.io/releases"

# One line a release, oldest first. test/unit/modules/test_redis_releases.py checks order and form.
SHA256 = {
    "6.2.0": "67d624c25d962bd68aff8812a135df85bad07556b8825f3bcd5b522a9932dbca",
    "6.2.1": "cd222505012cce20b25682fca931ec93bd21ae92cb4abfe742cf7b76aa907520",
    "6.2.2": "7a260bb74860f1b88c3d5942bf8ba60ca59f121c6dce42d3017bed6add0b9535",
    "6.2.3": "98ed7d532b5e9671f5df0825bb71f0f37483a16546364049384c63db8764512b",
    "6.2.4": "ba32c406a10fc2c09426e2be2787d74ff204eb3a2e496d87cff76a476b6ae16e",
    "6.2.5": "4b9a75709a1b74b3785e20a6c158cab94cf52298aa381eea947a678a60d551ae",
    "6.2.6": "5b2b8b7a50111ef395bf1c1d5be11e6e167ac018125055daa8b5c2317ae131ab",
    "6.2.7": "b7a79cc3b46d3c6eb52fa37dde34a4a60824079ebdfb3abfbbfa035947c55319",
    "6.2.8": "f91ab24bcb42673cb853292eb5d43c2017d11d659854808ed6a529c97297fdfe",
    "6.2.9": "9661b2c6b1cc9bf2999471b37a4d759fa5e747d408142c18af8792ebd8384a2a",
    "6.2.10": "22684f66d272379b91e3e53693918b535e2a6e54b9d14e1cad171658e0eefeca",
    "6.2.11": "8c75fb9cdd01849e92c23f30cb7fe205ea0032a38d11d46af191014e9acc3098",
    "6.2.12": "75352eef41e97e84bfa94292cbac79e5add5345fc79787df5cbdff703353fb1b",
    "6.2.13": "89ff27c80d420456a721ccfb3beb7cc628d883c53059803513749e13214a23d1",
    "6.2.14": "34e74856cbd66fdb3a684fb349d93961d8c7aa668b06f81fd93ff267d09bc277",
    "6.2.15": "21f5dd7155cb213961748adca55b177f35dae29d428f53da665686977530181d",
    "6.2.16": "846bff83c26d827d49f8cc8114ea9d1e72eea1169f7de36b8135ea2cec104e7d",
    "6.2.17": "f7aab300407aaa005bc1a688e61287111f4ae13ed657ec50ef4ab529893ddc30",
    "6.2.18": "470c75bac73d7390be4dd66479c6f29e86371c5d380ce0c7efb4ba2bbda3612d",
    "6.2.19": "73be4202261c2e2e3534ec2c3dcfbb338cceff40481ecf46c3578cb9e5fdea74",
    "6.2.20": "7f8b8a7aed53c445a877adf9e3743cdd323518524170135a58c0702f2dba6ef4",
    "6.2.21": "6383b32ba8d246f41bbbb83663381f5a5f4c4713235433cec22fc4a47e9b6d5f",
    "6.2.22": "3ce191a727505b2d711bb45cfde8d9eeab1e061bdc0e5cb56a50201069a9729d",
    "6.2.23": "f06cffd69f4016986508017469cf64c16e25b1282927ea9360e7c2d1839eb8e7",
    "7.0.0": "284d8bd1fd85d6a55a05ee4e7c31c31977ad56cbf344ed83790beeb148baa720",
    "7.0.1": "ca1820d527e4759884620be2917079e61e996fa81da5fbe5c07c4a7b507264dc",
    "7.0.2": "5e57eafe7d4ac5ecb6a7d64d6b61db775616dbf903293b3fcc660716dbda5eeb",
    "7.0.3": "2cde7d17214ffe305953da9fff12333e8a72caa57fd4923e4872f6362a208e73",
    "7.0.4": "f0e65fda74c44a3dd4fa9d512d4d4d833dd0939c934e946a5c622a630d057f2f",
    "7.0.5": "67054cc37b58c125df93bd78000261ec0ef4436a26b40f38262c780e56315cc3",
    "7.0.6": "7b33a7e890d13e27af1f246acb16312669ad8a1d56ce8f807dfbcd3c09aa7bb3",
    "7.0.7": "8d327d7e887d1bb308fc37aaf717a0bf79f58129e3739069aaeeae88955ac586",
    "7.0.8": "06a339e491306783dcf55b97f15a5dbcbdc01ccbde6dc23027c475cab735e914",
    "7.0.9": "f77135c2a47c9151d4028bfea3b34470ab4d324d1484f79a84c6f32a3cfb9f65",
    "7.0.10": "1dee4c6487341cae7bd6432ff7590906522215a061fdef87c7d040a0cb600131",
    "7.0.11": "ce250d1fba042c613de38a15d40889b78f7cb6d5461a27e35017ba39b07221e3",
    "7.0.12": "9dd83d5b278bb2bf0e39bfeb75c3e8170024edbaf11ba13b7037b2945cf48ab7",
    "7.0.13": "97065774d5fb8388eb0d8913458decfcb167d356e40d31dd01cd30c1cc391673",
    "7.0.14": "7e1cdf347f4970ea39d5b7fdb19aedec4c21942e202de65bdeb782d38d2f299f",
    "7.0.15": "98066f5363504b26c34dd20fbcc3c957990d764cdf42576c836fc021073f4341",
    "7.2.0": "8b12e242647635b419a0e1833eda02b65bf64e39eb9e509d9db4888fb3124943",
    "7.2.1": "5c76d990a1b1c5f949bcd1eed90d0c8a4f70369bdbdcb40288c561ddf88967a4",
    "7.2.2": "ca999be08800edc6d265379c4c7aafad92f0ee400692e4e2d69829ab4b4c3d08",
    "7.2.3": "3e2b196d6eb4ddb9e743088bfc2915ccbb42d40f5a8a3edd8cb69c716ec34be7",
    "7.2.4": "8d104c26a154b29fd67d6568b4f375212212ad41e0c2caa3d66480e78dbd3b59",
    "7.2.5": "5981179706f8391f03be91d951acafaeda91af7fac56beffb2701963103e423d",
    "7.2.6": "fb10d67a2fe2b4556f6cb840064dd6e6e3175ce8ca035f0726990ec2da9f3d0e",
    "7.2.7": "72c081e3b8cfae7144273d26d76736f08319000af46c01515cad5d29765cead5",
    "7.2.8": "6be4fdfcdb2e5ac91454438246d00842d2671f792673390e742dfcaf1bf01574",
    "7.2.9": "2343cc49db3beb9d2925a44e13032805a608821a58f25bd874c84881115a20b7",
    "7.2.10": "e576ad54bc53770649c556933ecd555b975e3dac422e46356102436a437b43c7",
    "7.2.11": "2f9886eca68d30114ad6a01da65631f8007d802fd3e6c9fac711251e6390323d",
    "7.2.12": "97c60478a7c777ac914ca9d87a7e88ba265926456107e758c62d8f971d0196bc",
    "7.2.13": "b3eeef15ea90a41c568f1f97a78d3370400baad55566869bbbf1af9f9106d85c",
    "7.2.14": "21326da3f66c0aead4c8204c0ac52ff905337a77cadd169f75ac22835ea30025",
    "7.2.15": "7bf7975331511fdb788e85dae63964b128fccee1df026a10db57444babc9c9c4",
    "7.4.0": "57b47c2c6682636d697dbf5d66d8d495b4e653afc9cd32b7adf9da3e433b8aaf",
    "7.4.1": "bc34b878eb89421bbfca6fa78752343bf37af312a09eb0fae47c9575977dfaa2",
    "7.4.2": "4ddebbf09061cbb589011786febdb34f29767dd7f89dbe712d2b68e808af6a1f",
    "7.4.3": "e1807d7c0f824f4c5450244ef50c1e596b8d09b35d03a83f4e018fb7316acf45",
    "7.4.4": "985c465146453f4d79912e70b2dc516577a1667cbf9b0420a0c87878fcc6f32f",
    "7.4.5": "00bb280528f5d7934bec8ab309b8125088c209131e10609cb1563b91365633bb",
    "7.4.6": "73b94484e00fb4c2440b490dc4021142fb0b6efc8b64c6329c10d24f0b531c99",
    "7.4.7": "c97e57b0df330a9e091cacff012bebe763c275398cf36ff44cdba876814b595b",
    "7.4.8": "f6773cb7d63be236c59c2917a82f1f08e47b77d89b2f0c9f53becb22b8ea4172",
    "7.4.9": "a71a67b47b2705d3448f0400573e3ad5c4c9f8c18236f426dc6acc7284bf42ad",
    "7.4.10": "669ab6689b5e7d0c479e8d526ccbadae36b69a11370742ffe23822b9df8d85ba",
    "8.0.0": "cf395665ba5fcecc4ef7aed1d8ab19c268619d98595827565c82344160171262",
    "8.0.1": "d3a11d6ababf44cb98d23f23cee39ae75d17867dcd64aac4add808e21ed36e0c",
    "8.0.2": "e9296b67b54c91befbcca046d67071c780a1f7c9f9e1ae5ed94773c3bb9b542f",
    "8.0.3": "33f37290b00b14e9a884dd4dcba335febd63ea16c51609d34fa41e031ad587df",
    "8.0.4": "7e185265d455ea8deb6bb7e071352ea691ca4d7b5105fc172fa524af59917b89",
    "8.0.5": "012bca956fc7151abc2281950e69768ee9c53ce4b36588772041675bc95fd313",
    "8.0.6": "6d0a9913887a4972536f9da226f1575859c34d86354129163260a5f9c6bd4229",
    "8.2.0": "ff95b83b7cf2f7a33af3be1e52fdf2e791c259f8272465c3b09f9e6bc901b604",
    "8.2.1": "e2c1cb9dd4180a35b943b85dfc7dcdd42566cdbceca37d0d0b14c21731582d3e",
    "8.2.2": "4e340e8e822a82114b6fb0f7ca581b749fa876e31e36e9fbcb75416bec9d0608",
    "8.2.3": "d88f2361fdf3a3a8668fe5753e29915566109dca07b4cb036427ea6dc7783671",
    "8.2.4": "954943d4873f3add5e3b694832b52753e9f55b810a917d0148675f27480ac8c2",
    "8.2.5": "68de6b8c7665ac7f5ddea026745515ea027a1e233d3ed413f67134333c0e611b",
    "8.2.6": "78dd7326c5c959202c6c3849d3ea9c61896d78d647c20f6542b52c0917f96eac",
    "8.2.7": "afaae66030c193b06720a714ba7a558136b82689027536e0e24f53908c18cbe9",
    "8.2.8": "01354ee4449e758e6e45d056fe5802abd9ccde4d669b79c9d5e9f6d730a80759",
    "8.4.0": "ca909aa15252f2ecb3a048cd086469827d636bf8334f50bb94d03fba4bfc56e8",
    "8.4.1": "859fe81b881f741843006eacf3e43d36b01af7ce3eabd5d7d2cb568533502162",
    "8.4.2": "0e7c150919e10c630d6e806fa7e65ce12aa90ddd0805e459b7da64ee65892805",
    "8.4.3": "aab9cc0f268354813d77ac29ae4fe86646f60590a21ea96a8d8caff38bd2efaa",
    "8.4.4": "c41ce78682346c1caab0ea917826eb408d666746755a0772b55754227d72ebe9",
    "8.4.5": "686321b1a03bb8f0ad7114e29516a31273e200ec69aa9bf457de3c2be3f2184f",
    "8.6.0": "d7e5f65f0bb0b4753d0cf98a60f5409a7c9b430ff8ac3397d336260cf64e5a6e",
    "8.6.1": "6873fc933eeb7018aa329e868beac7228695f50c0d46f236a4ff1a6d7f7bb5b6",
    "8.6.2": "cea46526594fe05f05b9ff733179eb1263deccf4269059cf081fdef222634c88",
    "8.6.3": "9f54d4458c52be5472cdd1347d737f1d488b520fc3d0911cba47302de8d836e2",
    "8.6.4": "559c2e50c496b2d4afcfb491af27763a1b170037317789ecf309025d0caece24",
    "8.6.5": "cd04337495fda9be071d4e1e3c6a61134f83995bd23d1794cad18f878b7012ad",
    "8.8.0": "88422181efb0c9c0abba332e3e391d409e1e13714b838931669235e5796f704b",
    "8.8.1": "1d1e423c9c808de3cb01dd3300d2b8d305b7691382e31a847ec17b66d3157477",
}


def __virtual__():
    return __virtualname__


def known() -> list[str]:
    """
    The releases whose digest is known here.

    Returns a list of versions, oldest first.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_releases.known
    """
    return list(SHA256)


def digest(version: str) -> str:
    """
    The sha256 digest that upstream publishes for a release's tarball.

    version
        A final release, such as ``8.0.6``.

    Returns 64 hex digits. Raises SaltInvocationError for a release that is not known here.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_releases.digest 8.0.6
    """
    if version not in SHA256:
        raise SaltInvocationError(
            f"No digest of Redis {version} is known here; the nearest releases known are {', '.join(nearest(version))}"
        )
    return SHA256[version]


def url(version: str) -> str:
    """
    Where upstream offers a release's tarball. Upstream's own list says ``http://``; the same files lie behind https.

    version
        A release, such as ``8.0.6``, known here or not.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_releases.url 8.0.6
    """
    return f"{DOWNLOADS}/redis-{version}.tar.gz"


def nearest(version: str, count: int = 3) -> list[str]:
    """
    The known releases that come nearest to a version: those of its own line first.

    version
        Any version, such as ``8.0.99``.
    count
        How many at most (default 3).

    Returns a list of versions, oldest first.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_releases.nearest 8.0.99
    """
    wanted = _numbers(str(version))

    def distance(release):
        return [abs(ours - theirs) for ours, theirs in zip(wanted, _numbers(release), strict=True)]

    return sorted(sorted(SHA256, key=distance)[:count], key=_numbers)


def _numbers(version: str) -> list[int]:
    """``8.10-rc1`` as [8, 10, 0]: enough to tell near from far."""
    parts = version.partition("-")[0].split(".")
    return ([int(part) if part.isdecimal() else 0 for part in parts] + [0, 0, 0])[:3]
